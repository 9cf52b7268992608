"""The third opinion about certificates: OpenSSL's own verifier."""

from cryptography import x509
from OpenSSL.crypto import X509, X509Store, X509StoreContext


def verified_by_openssl(chain: list[x509.Certificate], root: x509.Certificate) -> bool:
    """Verify leaf and app CA of a chain under a root; what does not verify raises."""
    leaf, app_ca, _ = (X509.from_cryptography(one) for one in chain)
    store = X509Store()
    store.add_cert(X509.from_cryptography(root))
    X509StoreContext(store, leaf, [app_ca]).verify_certificate()
    return True
