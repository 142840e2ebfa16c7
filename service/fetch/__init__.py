"""Pictures by url: fetched from public addresses only, in a thread of their own.

`make_fetcher(settings).fetch(url, ...)` gives the bytes. Everything here distrusts two parties: who
wrote the url (it may point inside our network) and who serves it (it may lie, redirect, stall, or
never end).
"""

from service.fetch.fetcher import Fetcher, ImageFetcher, NoImageUrls
from service.fetch.network import Network, SystemNetwork
from service.settings import Settings

_LOOKUPS_PER_FETCH = 8


def make_fetcher(settings: Settings, network: Network | None = None) -> Fetcher:
    """The fetcher that the settings ask for.

    Args:
        settings: `image_urls` and the limits beside it.
        network: how names and addresses are reached; that of this machine if None.
    """
    if not settings.image_urls:
        return NoImageUrls()
    if network is None:  # a lookup outlives the fetch that gave up on it
        network = SystemNetwork(threads=_LOOKUPS_PER_FETCH * settings.image_url_fetches)
    return ImageFetcher(settings, network)


__all__ = ["Fetcher", "ImageFetcher", "Network", "NoImageUrls", "SystemNetwork", "make_fetcher"]
