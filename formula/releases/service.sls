# The programs run, on the active release: one that runs on another release is restarted.
{% from "./map.jinja" import apps with context %}

include:
  - .checked

{% for app in apps if app.runs %}
{{ app.name }} runs:
  release_programs.running: {{ app.running | json }}
{% endfor %}
