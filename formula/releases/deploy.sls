# A release: deployed, its database migrated, activated; old ones removed. No program is restarted.
{% from "./map.jinja" import apps with context %}

include:
  - .migrate

{% for app in apps %}
{% if app.python is mapping or "/" in app.python | string %}
# What is deployed already is put onto another Python, such as a security release.
{{ app.name }} is on its Python:
  virtualenv_relocated.reinitialized:
    - name: {{ app.path }}
    - python: {{ app.python | json }}
    - require:
      - virtualenv_relocated: {{ app.name }} is deployed
{% endif %}

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
