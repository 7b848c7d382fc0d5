# Back to the release before, or to `releases:to`: at once and without a download. The release that
# is left is marked bad, so that no highstate brings it back (`virtualenv_tools.unmark`).
#
#   salt web1 state.apply releases.rollback
#   salt web1 state.apply releases.rollback pillar='{releases: {only: shop, to: 9c01b7e}}'
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
  module.run:
    - virtualenv_tools.rollback:
      - root: {{ app.root }}
      - to: {{ settings.to | json }}
      - reason: releases.rollback
    {% if app.runs %}
    - require_in:
      - release_programs: {{ app.name }} runs
    {% endif %}
{% endfor %}
{% endif %}
