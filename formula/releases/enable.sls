# The configuration of process managers and web servers for an app. Where a release is active, its
# programs are started: it undoes `releases.disable`.
{% from "./map.jinja" import apps, settings with context %}

include:
  - .checked
{% set starts = apps | selectattr("runs") | rejectattr("is_active") | list == [] %}
{% if starts %}
  - .service
{% endif %}

{# Salt runs the states of an included file first, so the programs have to wait for their files. #}
{% macro before(apps) %}
{% for app in apps if starts and app.runs %}
    {% if loop.first %}- require_in:{% endif %}

      - release_programs: {{ app.name }} runs
{% endfor %}
{% endmacro %}

{% if settings.retired %}
# Before anything is started: it may hold the same port.
programs that are no longer in the pillar are stopped:
  release_programs.retired:
    {% for setting in settings.retired %}
    - {{ setting | json }}
    {% endfor %}
    {{ before(apps) }}
{% endif %}

{% if apps | selectattr("process_manager", "equalto", "supervisor") | selectattr("programs") | list %}
supervisor has a directory for logs:
  file.directory:
    - name: {{ settings.supervisor.log_dir }}
    - makedirs: True
    {{ before(apps) }}
{% endif %}

{% for app in apps %}
{% for file in app.files if file.for not in ("nginx", "apache") %}
{{ file.path }}:
  file.managed:
    - source: salt://{{ tpldir }}/files/{{ file.template }}.jinja
    - template: jinja
    - mode: '{{ file.mode }}'
    - makedirs: True
    - show_changes: {{ file.mode != "0600" }}     # what is not for everybody's eyes may be a secret
    - context: {{ dict(file.context, app=app) | json }}
    {{ before([app]) }}
{% endfor %}

# A file that the web server refuses is replaced by the previous one.
{% for file in app.files if file.for in ("nginx", "apache") %}
{{ app.name }} is loaded by {{ file.for }}:
  release_programs.config_loaded:
    - command: {{ settings[file.for].reload_command | yaml_dquote }}
    - files: {{ [file.path] | json }}
    - config:
        source: salt://{{ tpldir }}/files/{{ file.template }}.jinja
        template: jinja
        mode: '{{ file.mode }}'
        makedirs: True
        context: {{ dict(file.context, app=app) | json }}
    {% if app.files | selectattr("for", "equalto", "wsgi") | list and file.for == "apache" %}
    - require:
      {% for script in app.files if script.for == "wsgi" %}
      - file: {{ script.path }}
      {% endfor %}
    {% endif %}
{% endfor %}
{% endfor %}
