# Which minion migrates an app's database for all, as the name of a state: the runner `releases.roll`
# looks it up before a roll-out. Nothing is done.
{% from "./map.jinja" import apps with context %}

include:
  - .checked

{% for app in apps %}
{% for setting in app.migrations if setting.host is defined %}
{{ app.name }} is migrated by its host:
  test.succeed_without_changes:
    - name: {{ setting.host | json }}
{% endfor %}
{% endfor %}
