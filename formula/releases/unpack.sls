# A release is deployed beside the others, and nothing is switched.
{% from "./map.jinja" import apps with context %}

include:
  - .checked

{% for app in apps %}
{{ app.name }} is deployed:
  virtualenv_relocated.managed: {{ app.managed | json }}
{% endfor %}
