"""Directory names that quoting goes wrong on."""

from __future__ import annotations

from hypothesis import strategies as st

CLASSICS = [
    b"/srv/my app",
    b"/srv/it's",
    b'/srv/"quoted"',
    b"/srv/$HOME",
    b"/srv/`id`",
    b"/srv/$(id)",
    b"/srv/back\\slash",
    b"/srv/back\\\\slashes",
    b"/srv/trailing\\",
    b"/srv/bang!",
    b"/srv/!!",
    b"/srv/!\\!",
    b"/srv/'!'",
    b"/srv/\\!",
    b"/srv/\\'",
    b"/srv/#hash",
    b"/srv/a #b",
    b"/srv/100%",
    b"/srv/~user",
    b"/srv/a&b;c|d",
    b"/srv/(a){b}[c]",
    b"/srv/<a>",
    b"/srv/*?",
    b"/srv/a\tb",
    "/srv/gr\u00fcn".encode(),
    "/srv/e\u0301\U0001f600".encode(),
    b"/srv/latin-\xfc",
    b"/srv/\xff'\xfe \x80",
    b"/srv/a=b,c:d",
    b"/srv/-n",
    b"/srv/''",
    b'/srv/""',
    b"/srv/ ' \" ",
]

NASTY = "aZ0 '\"$`\\!#%~&(){};|<>*?[]^=,@+:-_./"
LETTERS = "üéßж中e\u0301\u200d\U0001f600\u00a0\u2028"

letters = st.one_of(st.sampled_from(NASTY), st.sampled_from(LETTERS))
names = st.text(letters, min_size=1, max_size=12).filter(lambda name: "//" not in name)
nasty = names.map(lambda name: b"/srv/" + name.strip("/").encode()).filter(
    lambda path: path not in (b"/srv/", b"/srv/app")
)
"""Any path below /srv but /srv/app."""
