# Removes what the formula created: programs, their configuration, releases. Shared data, users and
# packages stay; `releases:with_data: True` removes the shared data as well.
#
#   salt web1 state.apply releases.clean pillar='{releases: {only: shop}}'
{% from "./map.jinja" import apps, settings with context %}

include:
  - .checked

{% if settings.several %}
releases.clean is for one app:
  test.fail_without_changes:
    - comment: >-
        Which of {{ settings.apps | join(", ") }}? Name it:
        pillar='{releases: {only: {{ settings.apps | first }}}}', or a list of them.
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
    - command: {{ settings[server].reload | yaml_dquote }}
    - files: {{ app.files | selectattr("for", "equalto", server) | map(attribute="path") | list | json }}
    - left: {{ app.root }}
    - watch:
      {% for file in app.files if file.for == server %}
      - file: {{ file.path }}
      {% endfor %}
{% endfor %}

{{ app.link }}:
  file.absent:
    - require:
      - release_programs: {{ app.name }} is stopped

# The active one would be refused while the link is there, as it is in a test.
{% for release, facts in salt["virtualenv_tools.releases"](app.root).items() %}
{{ app.root }}/{{ release }}:
  {{ "file" if opts.test and facts.get("active") else "virtualenv_relocated" }}.absent:
    - require:
      - file: {{ app.link }}
    - require_in:
      - file: {{ app.root }}/.releases
{% endfor %}

# The records, when no release is left.
{{ app.root }}/.releases:
  file.absent

{% if settings.with_data %}
{% for directory in app.directories + [app.root] %}
{{ directory }}:
  file.absent:
    - require:
      - file: {{ app.root }}/.releases
{% endfor %}
{% endif %}
{% endfor %}
{% endif %}
