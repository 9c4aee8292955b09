// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {Ownable, Ownable2Step} from "@openzeppelin/contracts/access/Ownable2Step.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";
import {IAttestationValidator} from "./interfaces/IAttestationValidator.sol";
import {IOperatorRegistry} from "./interfaces/IOperatorRegistry.sol";
import {IPolicyClient} from "./interfaces/IPolicyClient.sol";
import {IPolicyRegistry} from "./interfaces/IPolicyRegistry.sol";
import {Demands, DemandsLibrary} from "./libraries/Demands.sol";
import {Hashing} from "./libraries/Hashing.sol";
import {Limits} from "./libraries/Limits.sol";
import {Attestation, Intent, Pins} from "./Types.sol";

/// @title Base of every contract that acts only on attested intents
/// @notice Checks that the sender wants the intent, has the validator spend the attestation, and only then acts; all or nothing.
/// What acting means is {_perform} of the two forms, GuardedClient and ExecutorClient.
abstract contract PolicyClient is IPolicyClient, Ownable2Step {
    /// @notice What a client is deployed with.
    /// @param validator judges attestations
    /// @param policyRegistry knows policies' orderings
    /// @param owner may queue another policy or other demands, nothing else
    /// @param policyId the first policy, published already
    /// @param quorumBps share of the total stake that must have signed, in 1/10000
    /// @param epochGrace seconds for which a superseded operator set counts
    /// @param maxCertificateAge seconds for which a certificate counts
    /// @param policyDelay seconds before a queued change of policy or demands counts
    /// @param minActivationDelay the least activation delay, in seconds, that this client accepts of the operator registry
    /// @param escape who may act without attestations after announcing it; zero for nobody
    /// @param escapeDelay seconds between the announcement and the first such act
    struct ClientConfig {
        IAttestationValidator validator;
        IPolicyRegistry policyRegistry;
        address owner;
        bytes32 policyId;
        uint16 quorumBps;
        uint32 epochGrace;
        uint32 maxCertificateAge;
        uint32 policyDelay;
        uint32 minActivationDelay;
        address escape;
        uint32 escapeDelay;
    }

    /// @notice Another policy counts from `effectiveAt` on; attestations of the old one then revert with PolicyReplaced.
    event PolicyChanged(bytes32 indexed oldPolicyId, bytes32 indexed newPolicyId, uint64 effectiveAt);
    /// @notice Other demands count from `effectiveAt` on.
    event DemandsChanged(uint16 quorumBps, uint32 epochGrace, uint32 maxCertificateAge, uint64 effectiveAt);
    /// @notice The escape may act without attestations in this window.
    event EscapeAnnounced(address indexed escape, uint64 from, uint64 until);
    /// @notice The escape took its announcement back.
    event EscapeWithdrawn(address indexed escape);
    /// @notice The escape acted without an attestation.
    event EscapeUsed(address indexed escape, address indexed from, bytes32 indexed intentHash);

    /// @notice Neither did `intent.from` call nor is the signature its own.
    error SenderNotAuthorized(address from);
    /// @notice The value sent along is not the intent's.
    error ValueMismatch(uint256 sent, uint256 intended);
    /// @notice This way to the guarded effect is closed: only an attested intent gets there.
    error AttestationRequired();
    /// @notice The pins demand a quorum of nothing or of more than everything, or exceed the protocol's longest times.
    error PinsOutOfBounds();
    /// @notice The operator registry lets changes of the set count sooner than this client accepts.
    error ActivationDelayTooShort(uint64 activationDelay, uint32 minimum);
    /// @notice Only the escape may do this.
    error NotEscape(address caller);
    /// @notice The escape did not announce, its delay is not over, or its window is.
    error EscapeNotOpen(uint64 from, uint64 until);
    /// @notice An announcement stands already.
    error EscapeAlreadyAnnounced(uint64 from);
    /// @notice The intent is for another chain.
    error WrongChain(uint256 chainId);
    /// @notice The intent's deadline is over.
    error IntentExpired(uint64 deadline);
    /// @notice Something of the intent does not lie behind it in the calldata.
    error IntentMalformed();

    /// @dev How long an announced escape stays open, in seconds. Afterwards it must be announced anew.
    uint64 private constant ESCAPE_WINDOW = 14 days;

    /// @notice Judges attestations for this client.
    IAttestationValidator public immutable validator;
    /// @notice Knows policies' orderings.
    IPolicyRegistry public immutable policyRegistry;
    /// @notice Seconds before a queued change of policy or demands counts.
    uint32 public immutable policyDelay;
    address private immutable _escape;
    uint32 private immutable _escapeDelay;

    bytes32 private _policyId;
    Demands private _demands;
    bytes32 private _nextPolicyId;
    Demands private _nextDemands;

    /// @dev From when on the escape may act, unix seconds; 0 when it announced nothing.
    uint64 private _escapeOpensAt;

    /// @param config what this client is deployed with
    constructor(ClientConfig memory config) Ownable(config.owner) {
        validator = config.validator;
        policyRegistry = config.policyRegistry;
        policyDelay = config.policyDelay;
        _escape = config.escape;
        _escapeDelay = config.escapeDelay;
        uint64 activationDelay = IOperatorRegistry(config.validator.registry()).activationDelay();
        if (activationDelay < config.minActivationDelay) {
            revert ActivationDelayTooShort(activationDelay, config.minActivationDelay);
        }
        _checkBounds(config.quorumBps, config.epochGrace, config.maxCertificateAge);
        _policyId = config.policyId;
        _demands = DemandsLibrary.pack(
            config.policyRegistry.orderingOf(config.policyId),
            config.quorumBps,
            config.epochGrace,
            config.maxCertificateAge
        );
        emit PolicyChanged(0, config.policyId, uint64(block.timestamp));
        emit DemandsChanged(config.quorumBps, config.epochGrace, config.maxCertificateAge, uint64(block.timestamp));
    }

    /// @inheritdoc IPolicyClient
    function executeIntent(Intent calldata intent, bytes calldata senderSignature, Attestation calldata attestation)
        external
        payable
        returns (bytes memory)
    {
        _authorize(intent, senderSignature);
        _consume(intent, attestation, placetPins());
        return _perform(intent);
    }

    // -------------------------------------------------------------------------------------------------------------- the pins

    /// @inheritdoc IPolicyClient
    function placetPins() public view returns (Pins memory pins) {
        Demands demands = _demands;
        uint256 nextAt = demands.nextAt();
        if (nextAt == 0 || block.timestamp < nextAt) demands.fill(_policyId, pins);
        else _nextDemands.fill(_nextPolicyId, pins);
    }

    /// @notice What is queued, and from when on it counts, unix seconds; a time of 0 when nothing waits.
    function queuedPins() external view returns (Pins memory pins, uint64 effectiveAt) {
        effectiveAt = _demands.nextAt();
        if (effectiveAt <= block.timestamp) return (pins, 0);
        _nextDemands.fill(_nextPolicyId, pins);
    }

    /// @inheritdoc IPolicyClient
    function setPolicy(bytes32 policyId) external onlyOwner {
        (, Demands demands,) = _latest();
        uint64 effectiveAt = _enqueue(policyId, demands.ordered(policyRegistry.orderingOf(policyId)));
        emit PolicyChanged(_policyId, policyId, effectiveAt);
    }

    /// @notice Queues other demands; they count after the policy delay, together with a policy that waits already.
    function setDemands(uint16 quorumBps, uint32 epochGrace, uint32 maxCertificateAge) external onlyOwner {
        _checkBounds(quorumBps, epochGrace, maxCertificateAge);
        (bytes32 policyId, Demands demands, bool queued) = _latest();
        uint64 effectiveAt =
            _enqueue(policyId, DemandsLibrary.pack(demands.ordering(), quorumBps, epochGrace, maxCertificateAge));
        emit DemandsChanged(quorumBps, epochGrace, maxCertificateAge, effectiveAt);
        if (queued) emit PolicyChanged(_policyId, policyId, effectiveAt);
    }

    // ------------------------------------------------------------------------------------------------------------ the escape

    /// @notice Announces that the escape will act without attestations after its delay, for 14 days.
    function announceEscape() external onlyEscape {
        if (_escapeOpensAt != 0 && block.timestamp <= _escapeOpensAt + ESCAPE_WINDOW) {
            revert EscapeAlreadyAnnounced(_escapeOpensAt);
        }
        uint64 opensAt = uint64(block.timestamp) + _escapeDelay;
        _escapeOpensAt = opensAt;
        emit EscapeAnnounced(msg.sender, opensAt, opensAt + ESCAPE_WINDOW);
    }

    /// @notice Takes the announcement back.
    function withdrawEscape() external onlyEscape {
        _escapeOpensAt = 0;
        emit EscapeWithdrawn(msg.sender);
    }

    /// @notice Acts on an intent without an attestation, in the announced window. The sender's consent and its nonce are still demanded:
    /// only the attestation is waived.
    function executeEscape(Intent calldata intent, bytes calldata senderSignature)
        external
        payable
        onlyEscape
        returns (bytes memory)
    {
        uint64 opensAt = _escapeOpensAt;
        if (opensAt == 0 || block.timestamp < opensAt || block.timestamp > opensAt + ESCAPE_WINDOW) {
            revert EscapeNotOpen(opensAt, opensAt + ESCAPE_WINDOW);
        }
        if (intent.chainId != block.chainid) revert WrongChain(intent.chainId);
        if (block.timestamp > intent.deadline) revert IntentExpired(intent.deadline);
        _authorize(intent, senderSignature);
        validator.spendNonce(intent.from, intent.nonce, placetPins().ordering);
        emit EscapeUsed(msg.sender, intent.from, _intentHash(intent));
        return _perform(intent);
    }

    /// @notice The escape, fixed at deployment, and its window.
    /// @return escape who may act without attestations after announcing it; zero for nobody
    /// @return delay seconds between the announcement and the first act
    /// @return opensAt from when on it may act, unix seconds; 0 when it announced nothing
    /// @return closesAt until when, unix seconds
    function escapeStatus() external view returns (address escape, uint32 delay, uint64 opensAt, uint64 closesAt) {
        opensAt = _escapeOpensAt;
        return (_escape, _escapeDelay, opensAt, opensAt == 0 ? 0 : opensAt + ESCAPE_WINDOW);
    }

    function _intentHash(Intent calldata intent) private view returns (bytes32) {
        return Hashing.intentDigest(intent, Hashing.intentDomain(block.chainid, address(this)));
    }

    // --------------------------------------------------------------------------------------------------------------- private

    modifier onlyEscape() {
        if (msg.sender != _escape) revert NotEscape(msg.sender);
        _;
    }

    /// @dev Does what the intent says. The attestation is spent when this runs.
    function _perform(Intent calldata intent) internal virtual returns (bytes memory);

    /// @dev The value is the intent's, and `intent.from` calls or signed. ECDSA is tried first, also for accounts with code: an
    /// EIP-7702 account signs with its key.
    function _authorize(Intent calldata intent, bytes calldata signature) private view {
        if (msg.value != intent.value) revert ValueMismatch(msg.value, intent.value);
        address from = intent.from;
        if (msg.sender == from) return;
        bytes32 hash = _intentHash(intent);
        (address signer, ECDSA.RecoverError failure,) = ECDSA.tryRecoverCalldata(hash, signature);
        if (failure == ECDSA.RecoverError.NoError && signer == from) return;
        if (from.code.length != 0 && SignatureChecker.isValidERC1271SignatureNowCalldata(from, hash, signature)) {
            return;
        }
        revert SenderNotAuthorized(from);
    }

    /// @dev `validator.consume(intent, attestation, pins)`, encoded without decoding. The arguments of this call are copied as they came:
    /// new head (two offsets and the pins' five words), then this call's calldata. Offsets inside the two structs are relative to the
    /// structs, so only those in the head differ. What lies behind the intent lies there in both, what lies before the calldata does not: an
    /// offset that leads backwards (which Solidity accepts in structs) would be other data for the validator than for this contract.
    /// So the validator decodes the same bytes that were decoded here.
    function _consume(Intent calldata intent, Attestation calldata attestation, Pins memory pins) private {
        address target = address(validator);
        bytes4 selector = IAttestationValidator.consume.selector;
        bool done;
        bool backwards;
        assembly ("memory-safe") {
            // the offsets of data and functionSignature; a negative one has its high bits set
            backwards := shr(64, or(calldataload(add(intent, 96)), calldataload(add(intent, 160))))
        }
        if (backwards) revert IntentMalformed();
        assembly ("memory-safe") {
            let call_ := mload(0x40)
            let copied := sub(calldatasize(), 4)
            mstore(call_, selector)
            // seven words of head lie between the selector and the copy
            mstore(add(call_, 4), add(sub(intent, 4), 224))
            mstore(add(call_, 36), add(sub(attestation, 4), 224))
            mcopy(add(call_, 68), pins, 160)
            calldatacopy(add(call_, 228), 4, copied)
            done := call(gas(), target, 0, call_, add(228, copied), 0, 0)
        }
        if (!done) _bubble();
    }

    /// @dev Reverts as the call that just failed did.
    function _bubble() internal pure {
        assembly ("memory-safe") {
            let free := mload(0x40)
            returndatacopy(free, 0, returndatasize())
            revert(free, returndatasize())
        }
    }

    /// @dev Policy and demands as they will stand when all that is queued counts. Makes what counts by now the present state first.
    function _latest() private returns (bytes32 policyId, Demands demands, bool queued) {
        uint64 nextAt = _demands.nextAt();
        if (nextAt == 0) return (_policyId, _demands, false);
        (policyId, demands, queued) = (_nextPolicyId, _nextDemands, block.timestamp < nextAt);
        if (!queued) (_policyId, _demands) = (policyId, demands);
    }

    function _enqueue(bytes32 policyId, Demands demands) private returns (uint64 effectiveAt) {
        effectiveAt = uint64(block.timestamp) + policyDelay;
        (_nextPolicyId, _nextDemands) = (policyId, demands.until(0));
        _demands = _demands.until(effectiveAt);
    }

    function _checkBounds(uint16 quorumBps, uint32 epochGrace, uint32 maxCertificateAge) private pure {
        if (
            quorumBps == 0 || quorumBps > Limits.BPS || epochGrace > Limits.MAX_GRACE || maxCertificateAge == 0
                || maxCertificateAge > Limits.MAX_CERTIFICATE_AGE
        ) revert PinsOutOfBounds();
    }
}
