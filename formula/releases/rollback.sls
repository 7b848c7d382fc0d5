# Back to the release before, or to `releases:to`: at once and without a download. The release that
# is left is marked bad, so that no highstate brings it back (`virtualenv_tools.unmark_bad`). On several
# minions name it as `releases:leaving`, so that those which are not on it stay where they are.
#
#   salt web1 state.apply releases.rollback
#   salt web1 state.apply releases.rollback pillar='{releases: {only: shop, to: 9c01b7e}}'
#   salt 'web*' state.apply releases.rollback pillar='{releases: {only: shop, leaving: 4f2a9c1}}'
{% from "./map.jinja" import apps, settings with context %}

{% if settings.several %}
releases.rollback goes back with one app:
  test.fail_without_changes:
    - comment: >-
        Which of {{ settings.apps | join(", ") }}? Name it:
        pillar='{releases: {only: {{ settings.apps | first }}}}'.
{% else %}
include:
  - .service
  - .healthy

{% for app in apps %}
{{ app.name }} goes back:
  virtualenv_relocated.rolled_back:
    - name: {{ app.link }}
    - to: {{ settings.to | json }}
    - leaving: {{ settings.leaving | json }}
    - reason: releases.rollback
    {% if app.runs %}
    - require_in:
      - release_programs: {{ app.name }} runs
    {% endif %}
{% endfor %}
{% endif %}
