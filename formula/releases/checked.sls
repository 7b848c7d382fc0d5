# A pillar with a mistake: one sentence with the key. Nothing else is done then, as there are no apps
# for the other files; states of other formulas run as usual.
{% from "./map.jinja" import settings with context %}

{% if settings.problem %}
the pillar of releases:
  test.fail_without_changes:
    - comment: {{ settings.problem | yaml_dquote }}
{% endif %}
