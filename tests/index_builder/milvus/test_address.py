"""Urls of collections: the forms that are accepted, and secrets that are not."""

import pytest

from cots_model.errors import InputError
from index_builder.milvus.address import Address, parse_address


@pytest.mark.parametrize(
    ("url", "endpoint", "database", "collection"),
    [
        ("milvus://host:19530/photos", "http://host:19530", "", "photos"),
        ("milvus://host/photos", "http://host:19530", "", "photos"),
        ("milvus://10.0.0.1:1/a/b", "http://10.0.0.1:1", "a", "b"),
        ("milvus://[::1]:19530/photos", "http://[::1]:19530", "", "photos"),
        ("milvuss://host:443/db/photos", "https://host:443", "db", "photos"),
        ("milvus:///srv/lite.db/photos", "/srv/lite.db", "", "photos"),
        ("milvus:///srv/a%20b/%C3%BC.db/photos", "/srv/a b/ü.db", "", "photos"),
    ],
)
def test_address_takes_its_forms_and_gives_them_back(url, endpoint, database, collection):
    address = parse_address(url)
    assert address == Address(endpoint, database, collection)
    assert parse_address(str(address)) == address
    assert parse_address(f"{address.uri}/{collection}") == address


@pytest.mark.parametrize(
    "url",
    [
        "",
        "photos",
        "http://host:19530/photos",
        "milvus://host:19530",
        "milvus://host:19530/",
        "milvus://host:99999/photos",
        "milvus://host:x/photos",
        "milvus://host/a/b/c",
        "milvus://host/photos?secure=1",
        "milvus://host/photos#x",
        "milvus://host/pho-tos",
        "milvus://host/photos%0A",
        "milvus://[::1/photos",
        "milvus://host/1photos",
        "milvus://host/" + "a" * 256,
        'milvus://host/a"b',
        "milvus:///srv/lite.db",
        "milvus:///srv/lite/photos",
        "milvus:lite.db/photos",
        "milvuss:///srv/lite.db/photos",
    ],
)
def test_address_refuses_others_saying_what_is_accepted(url):
    with pytest.raises(InputError, match="accepted"):
        parse_address(url)


@pytest.mark.parametrize(
    "url",
    [
        "milvus://root:hunter2@host/photos",
        "milvus://hunter2@host/p",
        "milvus:root:hunter2@host/photos",
        "root:hunter2@host:19530/photos",
        "milvus://root:hunt/er2@host/photos",
    ],
)
def test_address_refuses_credentials_without_repeating_them(url):
    with pytest.raises(InputError, match="COTS_MILVUS_TOKEN") as caught:
        parse_address(url)
    assert "hunter2" not in str(caught.value)


def test_address_does_not_repeat_a_query():
    with pytest.raises(InputError, match=r"'milvus://host/photos' is no Milvus url") as caught:
        parse_address("milvus://host/photos?token=hunter2")
    assert "hunter2" not in str(caught.value)
