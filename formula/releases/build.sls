# On the build machine: bundles, for other machines to deploy.
{% from "./map.jinja" import settings with context %}

include:
  - .checked

{% for bundle, build in settings.builds.items() %}
{% set directory = salt["file.dirname"](bundle) %}
{{ bundle }} has a directory:
  file.directory:
    - name: {{ directory }}
    - makedirs: True

{% if opts.test and not salt["file.directory_exists"](directory) %}
# A build is refused where its bundle has no directory, and in a test none is made.
{{ bundle }}:
  test.configurable_test_state:
    - comment: {{ (bundle ~ " would be built, once its directory exists.") | yaml_dquote }}
    - changes: True
    - result: True
    - allow_test_mode_failure: True
{% else %}
{{ bundle }}:
  virtualenv_relocated.packed: {{ build | json }}
{% endif %}
{% endfor %}
