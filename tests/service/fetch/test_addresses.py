"""Every kind of address that is not of the public internet is told apart, whatever it hides in."""

from __future__ import annotations

import pytest

from service.fetch.addresses import is_public
from service.fetch.urls import FetchError, check_redirect, check_url

NOT_PUBLIC = {
    "loopback": ["127.0.0.1", "127.255.255.255", "::1"],
    "unspecified": ["0.0.0.0", "0.1.2.3", "::"],
    "private": ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"],
    "carrier_grade_nat": ["100.64.0.1", "100.127.255.255", "100.100.100.200"],
    "link_local": ["169.254.169.254", "fe80::1", "fe80::1%2", "febf::1"],
    "cloud_host": ["168.63.129.16"],
    "unique_local": ["fc00::1", "fd00:ec2::254"],
    "site_local": ["fec0::1"],
    "multicast": ["224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1"],
    "reserved": ["240.0.0.1", "255.255.255.255", "192.0.0.8", "192.0.0.192", "4000::1"],
    "documentation": ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1"],
    "benchmark": ["198.18.0.1", "198.19.255.255", "2001:2::1"],
    "discard": ["100::1"],
    "mapped": ["::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:8.8.8.8", "::ffff:7f00:1"],
    "compatible": ["::127.0.0.1", "::8.8.8.8"],
    "translated": ["::ffff:0:127.0.0.1"],
    "nat64": ["64:ff9b::7f00:1", "64:ff9b::8.8.8.8", "64:ff9b:1::a00:1"],
    "6to4": ["2002:7f00:1::", "2002:a00:1::1", "2002:808:808::", "192.88.99.1"],
    "teredo": ["2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001::1"],
    "isatap": ["2600::5efe:7f00:1", "2600::200:5efe:a00:1"],
    "no_address": ["", "localhost", "127.1", "1.2.3.4.5", "8.8.8.8/32", "[::1]", "0x7f000001"],
}


@pytest.mark.parametrize("kind", NOT_PUBLIC)
def test_addresses_that_are_not_public_are_told_apart(kind) -> None:
    assert [address for address in NOT_PUBLIC[kind] if is_public(address)] == []


@pytest.mark.parametrize(
    "address",
    [
        *("1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.1", "93.184.215.14", "223.255.255.255"),
        *("100.63.255.255", "100.128.0.1", "172.15.255.255", "172.32.0.1", "192.0.1.1"),
        *("2606:4700:4700::1111", "2001:4860:4860::8888", "2a00:1450:4001:82a::200e"),
    ],
)
def test_public_addresses_are_public(address) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "scheme"),
        ("picture.jpg", "scheme"),
        ("//example.org/a.jpg", "scheme"),
        ("ftp://example.org/a.jpg", "ftp"),
        ("file:///etc/passwd", "file"),
        ("gopher://example.org/", "gopher"),
        ("data:image/png;base64,AAAA", "data"),
        ("http://", "host"),
        ("http:///a.jpg", "host"),
        ("http://user@example.org/", "password"),
        ("http://user:word@example.org/", "password"),
        ("http://:word@example.org/", "password"),
        ("http://example.org@127.0.0.1/", "password"),
        ("http://example.org:22/", "22"),
        ("https://example.org:8443/", "8443"),
        ("http://example.org:0/", "port 0"),
        ("http://example.org:99999/", "port 99999"),
        ("http://example.org:a/", "not a url"),
        ("http://999.1.1.1/", "not a url"),
        ("http://[::1/", "not a url"),
        ("http://[::zz]/", "not a url"),
        ("http://exa\nmple.org/", "not a url"),
        ("http://example.org/\r\nHost: inside", "not a url"),
        ("http://example.org/\x00", "not a url"),
        ("http://example.org/\ud800", "not a url"),
        ("http://" + "a" * 9000, "characters"),
    ],
)
def test_urls_against_the_rules_are_refused_saying_why(url, words) -> None:
    with pytest.raises(FetchError, match=words) as caught:
        check_url(url, ports=(80, 443))
    assert caught.value.code == "image_url_refused"


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org",
        "HTTPS://EXAMPLE.ORG:443/a b.jpg?c=d#e",
        "https://ex\u00e4mple.org/\u2603.jpg",
        "http://example.org:/",
        "http://[2606:4700:4700::1111]/",
    ],
)
def test_urls_by_the_rules_are_taken(url) -> None:
    assert check_url(url, ports=(80, 443)).raw_host


def test_other_ports_are_taken_where_they_are_configured() -> None:
    assert check_url("http://example.org:8080/", ports=(8080,)).port == 8080
    with pytest.raises(FetchError, match="80"):
        check_url("http://example.org/", ports=(8080,))


@pytest.mark.parametrize(
    ("location", "target"),
    [
        (b"b.jpg", "https://example.org/b.jpg"),
        (b"//other.example/b", "https://other.example/b"),
        (b"https://other.example", "https://other.example"),
    ],
)
def test_redirects_are_read_beside_where_they_come_from(location, target) -> None:
    url = check_url("https://example.org/a/../a.jpg", ports=(443,))
    assert str(check_redirect(url, location, ports=(443,))) == target


def test_redirects_without_a_target_fail() -> None:
    url = check_url("http://example.org/", ports=(80,))
    for location in (b"", b"\xff", b"http://[::zz]/", b"http://a:b/"):
        with pytest.raises(FetchError, match="redirects to what is no url"):
            check_redirect(url, location, ports=(80,))
