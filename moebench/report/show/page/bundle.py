"""The JavaScript that draws Vega-Lite plots on the page: Vega, Vega-Lite and vega-embed.

vl-convert packs it from its own wheel, without a network. That takes seconds, so moebench's cache
folder keeps the result, by version.
"""

from contextlib import suppress
from importlib.metadata import version

from moebench.disk import cache_root, read_bytes, write_bytes


def bundle() -> str:
    """About 0.9 MB of JavaScript, which defines `vegaEmbed`."""
    path = None
    with suppress(OSError, ValueError, UnicodeDecodeError):
        path = cache_root() / f"vega-{version('vl-convert-python')}.js"
        return read_bytes(path).decode()
    import vl_convert

    made = vl_convert.javascript_bundle()  # pyright: ignore[reportCallIssue] its stub is older
    packed = made.replace("</script", "<\\/script")
    if path is not None:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, packed.encode())
    return packed
