# What the runner `releases.roll` looks up before a roll-out, as the names of states: who migrates an
# app's database for all, and where its release comes from. Nothing is done.
{% from "./map.jinja" import apps with context %}

include:
  - .checked

{% for app in apps %}
{% for setting in app.migrations if setting.host is defined %}
{{ app.name }} is migrated by its host:
  test.succeed_without_changes:
    - name: {{ setting.host | json }}
{% endfor %}
{% for setting in app.managed if setting.source is string %}
{{ app.name }} is deployed from its source:
  test.succeed_without_changes:
    - name: {{ setting.source | json }}
{% endfor %}
{% endfor %}
