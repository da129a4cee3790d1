"""A certificate that nobody trusts, for localhost and 127.0.0.1, with its key."""

import ssl
from pathlib import Path

CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBaDCCAQ2gAwIBAgIBATAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlsb2NhbGhv
c3QwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBQxEjAQBgNVBAMM
CWxvY2FsaG9zdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABE+T7LZhDI5vPye8
sRuGkIJnsZoodnG0YUvK5/YcRgu+RWNGR8wnqt4k02aM+OeqPJtJJeAYFNLL3M2E
HEUnbuejTjBMMBoGA1UdEQQTMBGCCWxvY2FsaG9zdIcEfwAAATAPBgNVHRMBAf8E
BTADAQH/MB0GA1UdDgQWBBQe5lowsybjSs8PvJhSu9aExcpB/zAKBggqhkjOPQQD
AgNJADBGAiEAg1H2bisKK1F1fPBIYFgRJOpS2JSSRzmMDAsoGidosAcCIQCZPBtC
hEAzTCCrSZXa62rJENf8J4ywm9paUItmyRoxFA==
-----END CERTIFICATE-----
"""
KEY = """\
-----BEGIN EC PRIVATE KEY-----
MHcCAQEEIAiN50NVpTBNAgFwrcFQ3tMjhuX0SPrEsfM6ZLNTFEyhoAoGCCqGSM49
AwEHoUQDQgAET5PstmEMjm8/J7yxG4aQgmexmih2cbRhS8rn9hxGC75FY0ZHzCeq
3iTTZoz456o8m0kl4BgU0svczYQcRSdu5w==
-----END EC PRIVATE KEY-----
"""


def server_context(folder: Path) -> ssl.SSLContext:
    """What a TLS server needs; the certificate is `folder`/certificate.pem."""
    (folder / "certificate.pem").write_text(CERTIFICATE)
    (folder / "key.pem").write_text(KEY)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return context
