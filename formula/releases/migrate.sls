# A release is deployed, and its database migrated by the minion that does that; nothing is switched.
{% from "./map.jinja" import apps with context %}

include:
  - .unpack

# Before the switch: the old release has to work with the new schema for a moment.
{% for app in apps if app.migrations %}
{{ app.name }} is migrated:
  virtualenv_relocated.migrated:
    - name: {{ app.path }}
    {% for setting in app.migrations %}
    - {{ setting | json }}
    {% endfor %}
    - require:
      - virtualenv_relocated: {{ app.name }} is deployed
{% endfor %}
