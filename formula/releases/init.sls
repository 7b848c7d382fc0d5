# All of it. Only `release` in the pillar changes with a deploy.
#
#   salt web1 state.apply releases
#   salt web1 state.apply releases pillar='{releases: {run: {app: shop}}}'
{% from "./map.jinja" import apps with context %}

include:
  - .bootstrap
  - .deploy
  - .enable
  - .service
  - .healthy

{% set running = apps | selectattr("runs") | list %}
{% if running %}
# So that test=True reports the restart that comes with a switch. The restart itself needs no watch:
# `running` sees which release a program was started from.
extend:
  {% for app in running %}
  {{ app.name }} runs:
    release_programs:
      - watch:
        - virtualenv_relocated: {{ app.link }}
  {% endfor %}
{% endif %}
