"""HTML that is escaped by the way it is made: text is text unless it came from here."""

from html import escape


class Html(str):
    """Markup that may stand in a page as it is."""

    __slots__ = ()


def element(name: str, /, *inner: object, **attributes: object) -> Html:
    """Return an element around `inner`, None left out; an attribute that is a word of Python has a ``_`` behind it."""
    named = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"' for key, value in attributes.items() if value is not None
    )
    if not inner and name in {"img", "link", "meta", "rect"}:
        return Html(f"<{name}{named}>" if name != "rect" else f"<{name}{named}/>")
    return Html(f"<{name}{named}>{joined(*inner)}</{name}>")


def joined(*inner: object) -> Html:
    """Return markup and escaped text one after the other, None left out."""
    return Html("".join(each if isinstance(each, Html) else escape(str(each)) for each in inner if each is not None))
