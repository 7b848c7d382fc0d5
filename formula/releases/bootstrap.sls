# What an app needs once: a user, system packages, a Python, directories.
{% from "./map.jinja" import apps with context %}

include:
  - .checked

{% for app in apps %}
# A user that exists is left unchanged. That is looked up here, and not by `unless`, which would be
# run by the shell of the user, and makes Salt load all of its modules.
{% if app.needs.group %}
{{ app.name }} has a group:
  group.present:
    - name: {{ app.group }}
    - system: True
{% endif %}

{% if app.needs.user %}
{{ app.name }} has a user:
  user.present:
    - name: {{ app.user }}
    - gid: {{ app.group }}
    - system: True
    - createhome: False
    - shell: /usr/sbin/nologin
    {% if app.needs.group %}
    - require:
      - group: {{ app.name }} has a group
    {% endif %}
    - require_in:
      - file: {{ app.name }} has a directory
{% endif %}

{% if app.os_packages %}
{{ app.name }} has its packages:
  pkg.installed:
    - pkgs: {{ app.os_packages | json }}
{% endif %}

{% if app.needs.python %}
{{ app.name }} has a Python:
  pkg.installed:
    - name: {{ app.needs.python }}
{% endif %}

# It belongs to the user salt-minion runs as, as do the releases: a program cannot change its code.
{{ app.name }} has a directory:
  file.directory:
    - name: {{ app.root }}
    - mode: '0755'
    - makedirs: True

{% for directory in app.above %}
{{ app.name }} has {{ directory }}:
  file.directory:
    - name: {{ directory }}
    - makedirs: True
    - require:
      - file: {{ app.name }} has a directory
{% endfor %}

# Persistent directories belong to the program, and nothing above them does.
{% for directory in app.directories %}
{{ app.name }} shares {{ directory }}:
  file.directory:
    - name: {{ directory }}
    - user: {{ app.user }}
    - group: {{ app.group }}
    - allow_symlink: False
    - require:
      {% for above in app.above if directory.startswith(above ~ "/") %}
      - file: {{ app.name }} has {{ above }}
      {% endfor %}
      - file: {{ app.name }} has a directory
{% endfor %}
{% endfor %}
