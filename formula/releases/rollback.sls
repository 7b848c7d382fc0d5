# Back to the previous release, or to `releases:run:to`: at once and without a download. The release that
# is rolled back is marked bad, so that no highstate activates it again (`virtualenv_tools.unmark_bad`).
# On several minions give it as `releases:run:from`: those that are not on it are left as they are.
#
#   salt web1 state.apply releases.rollback
#   salt web1 state.apply releases.rollback pillar='{releases: {run: {app: shop, to: 9c01b7e}}}'
#   salt 'web*' state.apply releases.rollback pillar='{releases: {run: {app: shop, from: 4f2a9c1}}}'
#
# A schema with a `host` is left as it is: `salt-run releases.rollback` rolls back a whole fleet, and
# migrates the schema down when the last minion is back.
{% from "./map.jinja" import apps, settings with context %}

{% if settings.several %}
releases.rollback is for one app:
  test.fail_without_changes:
    - comment: >-
        Which of {{ settings.apps | join(", ") }}? Name it:
        pillar='{releases: {run: {app: {{ settings.apps | first }}}}}'.
{% else %}
include:
  - .service
  - .healthy

{% for app in apps %}
{{ app.name }} is rolled back:
  virtualenv_relocated.rolled_back:
    - name: {{ app.link }}
    - to: {{ settings.run.to | json }}
    - leaving: {{ settings.run.from | json }}
    - reason: releases.rollback
    {% if app.migrations | selectattr("host", "defined") | list %}
    - migrate: False              # the schema is not this minion's alone: `salt-run releases.rollback`
    {% endif %}
    {% if app.runs %}
    - require_in:
      - release_programs: {{ app.name }} runs
    {% endif %}
{% endfor %}
{% endif %}
