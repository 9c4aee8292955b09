// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

/// @title Times that several contracts must agree on
/// @notice A certificate can be consumed for MAX_CERTIFICATE_AGE at most, and for MAX_GRACE after its operator set was superseded. Stake
/// stays in reach for both, and for a challenge window on top.
library Limits {
    /// @notice How far clocks of operators and chain may differ, in seconds.
    uint64 internal constant CLOCK_SLACK = 60;
    /// @notice The longest time for which a client may go on accepting a superseded operator set, in seconds.
    uint32 internal constant MAX_GRACE = 1 days;
    /// @notice The longest time for which a client may accept a certificate, in seconds.
    uint32 internal constant MAX_CERTIFICATE_AGE = 7 days;
    /// @notice Time to show a fault of an operator after the last certificate of its stake, in seconds.
    uint64 internal constant CHALLENGE_WINDOW = 7 days;
    /// @notice How long stake is held after it stopped counting, in seconds.
    uint64 internal constant STAKE_RELEASE_DELAY = MAX_GRACE + MAX_CERTIFICATE_AGE + CHALLENGE_WINDOW;
    /// @notice Shares are in ten-thousandths.
    uint256 internal constant BPS = 10_000;
}
