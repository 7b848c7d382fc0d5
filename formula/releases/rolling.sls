{#-
    A release for some minions first, then for the others in batches; rolled back where one fails.

        salt-run state.orchestrate releases.rolling \
            pillar='{rolling: {root: /srv/shop, release: e06f902a9d, tgt: "web*", pause: 60}}'

    The pillar `rolling` has the parameters of the runner `releases.roll`, which does the work:
    `salt-run -d releases.roll` describes them. The saltenv is that of the orchestration. With
    `test=True` the plan is reported, and nothing done.
-#}

{%- set wanted = pillar.get("rolling") %}
{%- set wanted = wanted if wanted is mapping else {} %}
{%- if opts.get("test") %}
{#- Salt would not call a runner then, so it is called while this file is rendered. #}
{%- set plan = salt["saltutil.runner"]("releases.roll", kwarg=dict(wanted, test=True)) %}

roll out:
  test.configurable_test_state:
    - comment: {{ plan["comment"] | json }}
    - changes: {{ plan["result"] is none }}
    - result: {{ plan["result"] is not false }}
    - allow_test_mode_failure: True

{%- else %}

roll out:
  salt.runner:
    - name: releases.roll
    - kwarg: {{ wanted | json }}

{%- endif %}
