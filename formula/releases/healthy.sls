# The active release answers, or it is rolled back. Where it is on a Python that the pillar chooses, such as a
# security release, the other releases are put onto that one then.
{% from "./map.jinja" import apps with context %}

include:
  - .service

{% for app in apps if app.checks %}
{{ app.name }} answers:
  virtualenv_relocated.healthy:
    - link: {{ app.link }}
    - checks: {{ app.checks | json }}
    - user: {{ app.user }}
    {% for key, value in app.health.items() %}
    - {{ key }}: {{ value }}
    {% endfor %}
    {% if app.runs %}
    - watch:                      # what is restarted after a rollback
      - release_programs: {{ app.name }} runs
    {% endif %}
{% endfor %}

{% for app in apps if app.python is mapping or "/" in app.python | string %}
{{ app.name }}'s other releases are on its Python:
  virtualenv_relocated.others_reinitialized:
    - link: {{ app.link }}
    - python: {{ app.python | json }}
    - checked: {{ app.checks != [] }}
    {% if app.checks or app.runs %}
    - require:
      {% if app.checks %}
      - virtualenv_relocated: {{ app.name }} answers
      {% else %}
      - release_programs: {{ app.name }} runs
      {% endif %}
    {% endif %}
{% endfor %}
