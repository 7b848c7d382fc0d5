"""The program that an interpreter runs to report which distributions it finds, as JSON.

It is for every Python since 2.7. Its arguments are directories of a virtualenv, which come first,
as they do on that one's `sys.path`.
"""

from __future__ import annotations

PROGRAM = r"""
import io, json, os, platform, re, sys

def text_of(path):
    if not os.path.isfile(path):
        return ''
    with io.open(path, encoding='utf-8', errors='replace') as stream:
        return stream.read()

def legacy(text):
    found, condition = [], ''
    for line in text.splitlines():
        line = line.strip()
        if line.startswith('[') and line.endswith(']'):
            extra, _, marker = line[1:-1].partition(':')
            both = ['extra == "%s"' % extra] if extra else []
            condition = ' and '.join(both + (['(%s)' % marker] if marker else []))
        elif line:
            found.append(line + (' ; ' + condition if condition else ''))
    return found

def distribution(path):
    if path.endswith('.dist-info'):
        text, more = text_of(os.path.join(path, 'METADATA')), ''
    elif os.path.isdir(path):
        text = text_of(os.path.join(path, 'PKG-INFO'))
        more = text_of(os.path.join(path, 'requires.txt'))
    else:
        text, more = text_of(path), ''
    head = re.sub(r'\n[ \t]+', ' ', text.split('\n\n')[0])
    fields = re.findall(r'^(Name|Version|Requires-Dist)[ \t]*:[ \t]*(.*?)[ \t]*$', head, re.M)
    known = dict(fields)
    if known.get('Name') and known.get('Version'):
        requires = [value for key, value in fields if key == 'Requires-Dist'] or legacy(more)
        yield [known['Name'], known['Version'].split()[0][:200], requires]

def distributions(directories):
    for directory in directories:
        if os.path.isdir(directory):
            for name in sorted(os.listdir(directory)):
                leftover = name.startswith('~')  # of an uninstallation by pip
                if not leftover and name.endswith(('.dist-info', '.egg-info', 'EGG-INFO')):
                    for found in distribution(os.path.join(directory, name)):
                        yield found

implementation = getattr(sys, 'implementation', None)
version = getattr(implementation, 'version', sys.version_info)
print(json.dumps({
    'own': list(distributions(sys.argv[1:])),
    'system': list(distributions([path for path in sys.path if path])),
    'environment': {
        'implementation_name': getattr(implementation, 'name', ''),
        'implementation_version': '%s.%s.%s' % tuple(version[:3]),
        'os_name': os.name,
        'platform_machine': platform.machine(),
        'platform_python_implementation': platform.python_implementation(),
        'platform_release': platform.release(),
        'platform_system': platform.system(),
        'platform_version': platform.version(),
        'python_full_version': platform.python_version(),
        'python_version': '%s.%s' % sys.version_info[:2],
        'sys_platform': sys.platform,
    },
}))
"""
