# The configuration of process managers and web servers for an app.
{% from "./map.jinja" import apps, settings with context %}

include:
  - .checked

{% for app in apps %}
{% for file in app.files %}
{{ file.path }}:
  file.managed:
    - source: salt://{{ tpldir }}/files/{{ file.template }}.jinja
    - template: jinja
    - mode: '{{ file.mode }}'
    - makedirs: True
    - show_changes: {{ file.mode != "0600" }}     # what is not for everybody's eyes may be a secret
    - context: {{ dict(file.context, app=app) | json }}
{% endfor %}

{% for server in app.web %}
{{ app.name }} is loaded by {{ server }}:
  release_programs.config_loaded:
    - command: {{ settings[server].reload | yaml_dquote }}
    - files: {{ app.files | selectattr("for", "equalto", server) | map(attribute="path") | list | json }}
    - watch:
      {% for file in app.files if file.for == server %}
      - file: {{ file.path }}
      {% endfor %}
{% endfor %}
{% endfor %}
