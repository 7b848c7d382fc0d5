# The active release answers, or it is rolled back.
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
