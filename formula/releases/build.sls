# On the build machine: bundles, for other machines to deploy.
{% from "./map.jinja" import settings with context %}

include:
  - .checked

{% for bundle, build in settings.builds.items() %}
{{ bundle }} has a directory:
  file.directory:
    - name: {{ salt["file.dirname"](bundle) }}
    - makedirs: True

{{ bundle }}:
  virtualenv_relocated.packed: {{ build | json }}
{% endfor %}
