# Programs read their settings again: by their signal in `reload`, else by a restart.
{% from "./map.jinja" import apps with context %}

include:
  - .checked

{% for app in apps if app.runs %}
{{ app.name }} is reloaded:
  release_programs.reloaded: {{ app.running | json }}
{% endfor %}
