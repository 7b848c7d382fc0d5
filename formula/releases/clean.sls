# Removes what the formula created: programs, their configuration, releases. Shared data, users and
# packages stay; `releases:run:purge_data: True` removes the shared data as well.
#
#   salt web1 state.apply releases.clean pillar='{releases: {run: {app: shop}}}'
{% from "./map.jinja" import apps, settings with context %}

include:
  - .disable

{% if not settings.several %}
{% for app in apps %}
{{ app.link }}:
  file.absent:
    - require:
      - release_programs: {{ app.name }} is stopped

# The active one would be refused while the link is there, as it is in a test.
{% for release, found in salt["virtualenv_tools.releases"](app.root).items() %}
{{ app.root }}/{{ release }}:
  {{ "file" if opts.test and found.get("active") else "virtualenv_relocated" }}.absent:
    - require:
      - file: {{ app.link }}
    - require_in:
      - file: {{ app.root }}/.releases
{% endfor %}

# The records, when no release is left.
{{ app.root }}/.releases:
  file.absent

{% if salt["virtualenv_tools.releases"](app.root).values() | selectattr("interpreter", "defined") | list %}
# The interpreters that the releases brought, unless others use them too.
{{ app.name }} needs no interpreter:
  virtualenv_relocated.pruned:
    - name: {{ app.root }}
    - require:
      - file: {{ app.root }}/.releases
{% endif %}

{% if settings.run.purge_data %}
{% for directory in app.directories + [app.root] %}
{{ directory }}:
  file.absent:
    - require:
      - file: {{ app.root }}/.releases
{% endfor %}
{% endif %}
{% endfor %}
{% endif %}
