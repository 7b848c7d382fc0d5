# Stops an app: its programs, and their configuration and the web servers' removed. Releases, `current`
# and all data stay. `releases.enable` starts it again, and so does a highstate with `releases`: an app
# that should stay stopped is removed from the pillar.
#
#   salt web1 state.apply releases.disable pillar='{releases: {run: {app: shop}}}'
{% from "./map.jinja" import apps, settings with context %}

include:
  - .checked

{% if settings.several %}
releases.disable is for one app:
  test.fail_without_changes:
    - comment: >-
        Which of {{ settings.apps | join(", ") }}? Name it:
        pillar='{releases: {run: {app: {{ settings.apps | first }}}}}', or a list of them.
{% else %}
{% for app in apps %}
{{ app.name }} is stopped:
  release_programs.dead: {{ app.running | json }}

{% for file in app.files %}
{{ file.path }}:
  file.absent:
    - require:
      - release_programs: {{ app.name }} is stopped
{% endfor %}

{% for server in app.web %}
{{ app.name }} is removed from {{ server }}:
  release_programs.config_loaded:
    - command: {{ settings[server].reload_command | yaml_dquote }}
    - files: {{ app.files | selectattr("for", "equalto", server) | map(attribute="path") | list | json }}
    - left: {{ app.root }}
    - watch:
      {% for file in app.files if file.for == server %}
      - file: {{ file.path }}
      {% endfor %}
{% endfor %}
{% endfor %}
{% endif %}
