"""Of the third reading's tests (tests/open), those whose defect is mended: they stand where they were written until all are."""

from tests.open.test_third_gateway import (
    test_16_a_batch_that_cannot_be_read_back_does_not_keep_the_gateway_from_starting,
    test_16_a_denial_is_answered_when_nobody_has_time_to_explain_it,
    test_26_one_operator_hides_no_evidence,
    test_28_a_policys_format_does_not_stop_the_gateway,
)
from tests.open.test_third_policies import test_29_a_bundle_that_makes_no_id_ends_no_operator

__all__ = [
    "test_16_a_batch_that_cannot_be_read_back_does_not_keep_the_gateway_from_starting",
    "test_16_a_denial_is_answered_when_nobody_has_time_to_explain_it",
    "test_26_one_operator_hides_no_evidence",
    "test_28_a_policys_format_does_not_stop_the_gateway",
    "test_29_a_bundle_that_makes_no_id_ends_no_operator",
]
