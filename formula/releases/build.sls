# On the build machine: bundles, for other machines to deploy.
{% from "./map.jinja" import settings with context %}

include:
  - .checked

{% for bundle, build in settings.builds.items() %}
{{ bundle }}:
  virtualenv_relocated.packed: {{ build | json }}
{% endfor %}
