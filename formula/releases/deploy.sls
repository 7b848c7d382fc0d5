# A release: deployed, its database migrated, activated; old ones removed. No program is restarted.
{% from "./map.jinja" import apps with context %}

include:
  - .migrate

{% for app in apps %}
{{ app.link }}:
  virtualenv_relocated.active:
    - target: {{ app.path }}
    - require:
      - virtualenv_relocated: {{ app.name }} is deployed
      {% if app.migrations %}
      - virtualenv_relocated: {{ app.name }} is migrated
      {% endif %}

# After the health check of the same run, which may roll back.
{{ app.root }}:
  virtualenv_relocated.pruned:
    - keep: {{ app.keep_releases }}
    - order: last
{% endfor %}
