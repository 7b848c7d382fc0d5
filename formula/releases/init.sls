# All of it. Only `release` in the pillar changes with a deploy.
#
#   salt web1 state.apply releases
#   salt web1 state.apply releases pillar='{releases: {only: shop}}'
{% from "./map.jinja" import apps with context %}

include:
  - .bootstrap
  - .deploy
  - .enable
  - .service
  - .healthy

{% if apps %}
# So that test=True tells of the restart that comes with a switch. The restart itself needs no watch:
# `running` sees which release a program was started from.
extend:
  {% for app in apps if app.runs %}
  {{ app.name }} runs:
    release_programs:
      - watch:
        - virtualenv_relocated: {{ app.link }}
  {% endfor %}
{% endif %}
