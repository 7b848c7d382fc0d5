# A release: deployed, its database migrated, activated; old ones removed. No program is restarted.
{% from "./map.jinja" import apps with context %}

include:
  - .checked

{% for app in apps %}
{{ app.name }} is deployed:
  virtualenv_relocated.managed: {{ app.managed | json }}

{% if app.migrations %}
# Before the switch: the old release has to work with the new schema for a moment.
{{ app.name }} is migrated:
  virtualenv_relocated.migrated:
    - name: {{ app.path }}
    {% for setting in app.migrations %}
    - {{ setting | json }}
    {% endfor %}
    - require:
      - virtualenv_relocated: {{ app.name }} is deployed
    - require_in:
      - virtualenv_relocated: {{ app.link }}
{% endif %}

{{ app.link }}:
  virtualenv_relocated.active:
    - target: {{ app.path }}
    - require:
      - virtualenv_relocated: {{ app.name }} is deployed

# After the health check of the same run, which may roll back.
{{ app.root }}:
  virtualenv_relocated.pruned:
    - keep: {{ app.keep_releases }}
    - order: last
{% endfor %}
