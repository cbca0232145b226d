"""From options to a page that listens."""

import os

from PIL import Image

from autoregressive.demo.options import App
from autoregressive.demo.shop import Shop, open_shop

MISSING = "the page needs gradio: pip install 'llamagen[demo]'"
UPLOAD = "20mb"
MAX_PIXELS = 40_000_000  # of an upload: a picture takes three bytes each once it is opened


def serve(options: App) -> None:
    """Load, build, and listen until Ctrl-C."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # nothing is sent anywhere
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ValueError(MISSING) from error
    listen(open_shop(options))


def listen(shop: Shop, wait: bool = True):
    """The page, as gradio's Blocks; without `wait` it listens beside what the caller goes on with."""
    from autoregressive.demo.page import STYLE, build, theme

    page = shop.options.page
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow refuses twice as many, and warns from here on
    blocks = build(shop)
    blocks.queue(max_size=page.max_queue)
    port = None if page.port == "auto" else page.port
    blocks.launch(server_name=page.host, server_port=port, inbrowser=page.open_browser, max_file_size=UPLOAD,
                  show_error=True, share=False, state_session_capacity=200, theme=theme(), css=STYLE,
                  footer_links=["api"], ssr_mode=False, pwa=False, mcp_server=False,
                  prevent_thread_lock=not wait)  # fmt: skip
    return blocks
