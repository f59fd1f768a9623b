import grpc
import pytest
from google.cloud import kms_v1 as kms

from ops.kms_emulator.grpc_errors import StatusError
from ops.kms_emulator.key_methods import MAX_PAGE, paginate


def test_the_pages_list_everything_once_and_in_order() -> None:
    items, token = list(range(7)), ""
    listed: list[int] = []
    for expected in (3, 3, 1):
        page, token = paginate(items, kms.ListCryptoKeysRequest(page_size=3, page_token=token))
        assert len(page) == expected
        listed += page
    assert (listed, token) == (items, "")


def test_a_last_page_that_is_full_has_no_successor() -> None:
    assert paginate([1, 2], kms.ListCryptoKeysRequest(page_size=2)) == ([1, 2], "")


def test_a_page_has_a_default_and_a_largest_size() -> None:
    items = list(range(3000))
    assert len(paginate(items, kms.ListKeyRingsRequest())[0]) == 100
    assert len(paginate(items, kms.ListKeyRingsRequest(page_size=2500))[0]) == MAX_PAGE


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (kms.ListCryptoKeysRequest(page_size=-1), grpc.StatusCode.INVALID_ARGUMENT),
        (kms.ListCryptoKeysRequest(page_token="!"), grpc.StatusCode.INVALID_ARGUMENT),
        (kms.ListCryptoKeysRequest(page_token="LTE="), grpc.StatusCode.INVALID_ARGUMENT),
        (kms.ListCryptoKeysRequest(page_token="ä"), grpc.StatusCode.INVALID_ARGUMENT),
        (kms.ListCryptoKeysRequest(page_token="OTk5" * 2000), grpc.StatusCode.INVALID_ARGUMENT),  # 6000 digits
        (kms.ListCryptoKeysRequest(filter="state=ENABLED"), grpc.StatusCode.UNIMPLEMENTED),
        (kms.ListCryptoKeysRequest(order_by="name"), grpc.StatusCode.UNIMPLEMENTED),
    ],
)
def test_what_cannot_be_listed_is_refused(request_: kms.ListCryptoKeysRequest, code: grpc.StatusCode) -> None:
    with pytest.raises(StatusError) as refused:
        paginate([1, 2, 3], request_)
    assert refused.value.code is code
