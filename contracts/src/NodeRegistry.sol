// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {Hashing} from "./libraries/Hashing.sol";

/// @title Inference nodes and the keys that sign their receipts
/// @notice Owns who answers for a node, where it is, where it is paid, and which Ed25519 keys signed its receipts when. A node's name is the
/// address that registered it, for ever, whoever owns it later. A key has a beginning and an end, is never deleted and never moves to another
/// node, so a receipt is judged by what stood at its own time, years later too. An end is never taken back, and never lies before the block
/// that set it: a node cannot disown what it signed.
/// @dev No owner of its own; anyone registers, so being here recommends nobody. Keys are announced by a commitment first: Ed25519 cannot be
/// checked here at a reasonable price, so without it whoever sees a key in a waiting transaction could claim it for its own node.
contract NodeRegistry {
    /// @notice Why a key was revoked.
    enum RevocationReason {
        None,
        Unspecified,
        Ceased,
        Compromised
    }

    /// @notice A node.
    /// @param owner who may change it
    /// @param pendingOwner who may take it over
    /// @param payout where it is paid
    /// @param jurisdiction two letters (ISO 3166-1) that the owner declares; zero when it declares none. Nothing proves it
    /// @param endpoint where it answers; empty when it does not
    struct Node {
        address owner;
        address pendingOwner;
        address payout;
        bytes2 jurisdiction;
        string endpoint;
    }

    /// @dev A receipt key: valid from `since` on, before `until`.
    struct KeyRecord {
        bytes32 key;
        address node;
        uint40 since;
        uint40 until;
        RevocationReason reason;
    }

    /// @notice A node was registered; its name is the address of its first owner.
    event NodeRegistered(address indexed node);
    /// @notice A node answers here from now on; empty: nowhere.
    event EndpointChanged(address indexed node, string endpoint);
    /// @notice A node is paid here from now on.
    event PayoutChanged(address indexed node, address indexed payout);
    /// @notice A node's owner declares this jurisdiction from now on; zero: none.
    event JurisdictionChanged(address indexed node, bytes2 jurisdiction);
    /// @notice A node was offered to another owner; to zero: the offer was taken back.
    event NodeTransferStarted(address indexed node, address indexed owner, address indexed newOwner);
    /// @notice A node has another owner. Its name and its keys are the same.
    event NodeTransferred(address indexed node, address indexed oldOwner, address indexed newOwner);
    /// @notice A key was announced, unread; it can be added from `readyAt` on.
    event KeyCommitted(address indexed node, bytes32 indexed commitment, uint64 readyAt);
    /// @notice A key signs for a node from now on.
    event KeyAdded(address indexed node, bytes32 indexed keyId, bytes32 key, uint40 since);
    /// @notice A key was replaced by another, and ends at this time.
    event KeyRotated(address indexed node, bytes32 indexed oldKeyId, bytes32 indexed newKeyId, uint40 until);
    /// @notice A key ended at once.
    event KeyRevoked(address indexed node, bytes32 indexed keyId, RevocationReason reason, uint40 until);

    /// @notice This address is a node's name already.
    error NodeAlreadyRegistered(address node);
    /// @notice Only the node's owner may do this. An unknown node has none.
    error NotNodeOwner(address node, address caller);
    /// @notice The node was not offered to the caller.
    error NotPendingOwner(address node, address caller);
    /// @notice The endpoint is longer than {MAX_ENDPOINT_BYTES}.
    error EndpointTooLong(uint256 length);
    /// @notice A node is not paid to the zero address.
    error ZeroPayout();
    /// @notice A jurisdiction is two capital letters, or zero.
    error InvalidJurisdiction(bytes2 jurisdiction);
    /// @notice A key is not zero.
    error ZeroKey();
    /// @notice The key was not announced for this node with this salt.
    error UnknownCommitment(bytes32 commitment);
    /// @notice The announcement is too young.
    error CommitmentTooYoung(uint64 readyAt);
    /// @notice The announcement stands already; to make it again would start its time anew.
    error CommitmentStands(bytes32 commitment);
    /// @notice The key was registered before, here or for another node. A key is never used twice.
    error KeyAlreadyUsed(bytes32 keyId);
    /// @notice The node has {MAX_KEYS} keys in force.
    error TooManyKeys(address node);
    /// @notice No such key was registered.
    error UnknownKey(bytes32 keyId);
    /// @notice The key is another node's.
    error KeyOfAnotherNode(bytes32 keyId, address node);
    /// @notice The key ended already.
    error KeyNotInForce(bytes32 keyId);
    /// @notice Old and new key may overlap for {MAX_OVERLAP} at most.
    error OverlapTooLong(uint40 overlap);
    /// @notice A revocation has a reason.
    error ReasonMissing();

    /// @notice Longest endpoint, in bytes.
    uint256 public constant MAX_ENDPOINT_BYTES = 256;
    /// @notice Most keys of one node that are in force together. Those that ended are not counted.
    uint256 public constant MAX_KEYS = 8;
    /// @notice How long a replaced key may stay valid beside the new one, in seconds.
    uint40 public constant MAX_OVERLAP = 7 days;
    /// @notice The end of a key that has none yet.
    uint40 public constant NO_END = type(uint40).max;

    /// @notice Seconds between announcing a key and adding it; 0 only in development.
    uint64 public immutable commitmentAge;

    mapping(address node => Node) private _nodes;
    mapping(bytes32 keyId => KeyRecord) private _keys;
    /// @dev Keys in force, and such as ended since a key was last added.
    mapping(address node => bytes32[]) private _openKeys;
    mapping(address node => mapping(bytes32 commitment => uint64 readyAt)) private _commitments;

    /// @param commitmentAge_ seconds between announcing a key and adding it: longer than it takes a chain to include a transaction
    constructor(uint64 commitmentAge_) {
        commitmentAge = commitmentAge_;
    }

    modifier onlyNodeOwner(address node) {
        if (msg.sender != _nodes[node].owner) revert NotNodeOwner(node, msg.sender);
        _;
    }

    // -------------------------------------------------------------------------------------------------------------- nodes

    /// @notice Registers the caller as a node and its owner. Nobody can register another's address.
    function register(string calldata endpoint, address payout, bytes2 jurisdiction) external {
        if (_nodes[msg.sender].owner != address(0)) revert NodeAlreadyRegistered(msg.sender);
        _nodes[msg.sender].owner = msg.sender;
        emit NodeRegistered(msg.sender);
        _setEndpoint(msg.sender, endpoint);
        _setPayout(msg.sender, payout);
        _setJurisdiction(msg.sender, jurisdiction);
    }

    /// @notice Says where a node answers; empty: nowhere.
    function setEndpoint(address node, string calldata endpoint) external onlyNodeOwner(node) {
        _setEndpoint(node, endpoint);
    }

    /// @notice Says where a node is paid.
    function setPayout(address node, address payout) external onlyNodeOwner(node) {
        _setPayout(node, payout);
    }

    /// @notice Declares a node's jurisdiction; zero: none.
    function setJurisdiction(address node, bytes2 jurisdiction) external onlyNodeOwner(node) {
        _setJurisdiction(node, jurisdiction);
    }

    /// @notice Offers a node to another owner, who must accept. Zero takes the offer back.
    function transferNode(address node, address newOwner) external onlyNodeOwner(node) {
        _nodes[node].pendingOwner = newOwner;
        emit NodeTransferStarted(node, msg.sender, newOwner);
    }

    /// @notice Takes over a node that was offered to the caller. Keys stay in force until the new owner ends them.
    function acceptNode(address node) external {
        Node storage record = _nodes[node];
        if (msg.sender != record.pendingOwner) revert NotPendingOwner(node, msg.sender);
        address oldOwner = record.owner;
        record.owner = msg.sender;
        delete record.pendingOwner;
        emit NodeTransferred(node, oldOwner, msg.sender);
    }

    // --------------------------------------------------------------------------------------------------------------- keys

    /// @notice Announces a key without showing it: {keyCommitment} of node, key and a random salt.
    function commitKey(address node, bytes32 commitment) external onlyNodeOwner(node) {
        if (_commitments[node][commitment] != 0) revert CommitmentStands(commitment);
        uint64 readyAt = uint64(block.timestamp) + commitmentAge;
        _commitments[node][commitment] = readyAt;
        emit KeyCommitted(node, commitment, readyAt);
    }

    /// @notice Adds an announced key. It is valid from this block on.
    /// @param node whose receipts it signs
    /// @param key the Ed25519 public key
    /// @param salt as in the commitment
    /// @return keyId the key's name in receipts
    function addKey(address node, bytes32 key, bytes32 salt) external onlyNodeOwner(node) returns (bytes32 keyId) {
        return _add(node, key, salt);
    }

    /// @notice Adds an announced key in place of another, which ends after the overlap, or sooner if it was to end sooner.
    /// @param node whose keys they are
    /// @param oldKeyId what is replaced
    /// @param key the new Ed25519 public key
    /// @param salt as in the commitment
    /// @param overlap seconds for which the old key stays valid, for answers that are on their way
    /// @return keyId the new key's name in receipts
    function rotateKey(address node, bytes32 oldKeyId, bytes32 key, bytes32 salt, uint40 overlap)
        external
        onlyNodeOwner(node)
        returns (bytes32 keyId)
    {
        if (overlap > MAX_OVERLAP) revert OverlapTooLong(overlap);
        KeyRecord storage old = _keys[oldKeyId];
        if (old.node != node) {
            if (old.node == address(0)) revert UnknownKey(oldKeyId);
            revert KeyOfAnotherNode(oldKeyId, old.node);
        }
        uint40 until = _endBy(old, oldKeyId, uint40(block.timestamp) + overlap);
        keyId = _add(node, key, salt);
        emit KeyRotated(node, oldKeyId, keyId, until);
    }

    /// @notice Ends a key now. What it signed before stays valid, as far as it was signed before: see docs/reference/ledger.md for what a
    /// stolen key can still do.
    function revokeKey(bytes32 keyId, RevocationReason reason) external {
        KeyRecord storage record = _keys[keyId];
        address node = record.node;
        if (node == address(0)) revert UnknownKey(keyId);
        if (msg.sender != _nodes[node].owner) revert NotNodeOwner(node, msg.sender);
        if (reason == RevocationReason.None) revert ReasonMissing();
        uint40 until = _endBy(record, keyId, uint40(block.timestamp));
        record.reason = reason;
        emit KeyRevoked(node, keyId, reason, until);
    }

    // -------------------------------------------------------------------------------------------------------------- views

    /// @notice A node as it stands; all zero when there is none.
    function nodeOf(address node) external view returns (Node memory) {
        return _nodes[node];
    }

    /// @notice A key, for ever.
    /// @return node whose receipts it signs
    /// @return key the Ed25519 public key
    /// @return since from when on it is valid, unix seconds
    /// @return until when it is valid no more; {NO_END} when no end is known
    function keyOf(bytes32 keyId) external view returns (address node, bytes32 key, uint40 since, uint40 until) {
        KeyRecord storage record = _keys[keyId];
        node = record.node;
        if (node == address(0)) revert UnknownKey(keyId);
        return (node, record.key, record.since, record.until);
    }

    /// @notice Why a key was revoked; None when it was not.
    function revocationOf(bytes32 keyId) external view returns (RevocationReason) {
        return _keys[keyId].reason;
    }

    /// @notice Whether a key was valid at a time, unix seconds. False for an unknown key, true for a later time while no end is known.
    function wasValidAt(bytes32 keyId, uint256 time) external view returns (bool) {
        KeyRecord storage record = _keys[keyId];
        return record.node != address(0) && record.since <= time && time < record.until;
    }

    /// @notice The node's keys that are in force now; those that ended are in the events.
    function keysInForce(address node) external view returns (bytes32[] memory keyIds) {
        bytes32[] storage open = _openKeys[node];
        keyIds = new bytes32[](open.length);
        uint256 count;
        for (uint256 i = 0; i < open.length; ++i) {
            if (_keys[open[i]].until > block.timestamp) keyIds[count++] = open[i];
        }
        assembly ("memory-safe") {
            mstore(keyIds, count)
        }
    }

    /// @notice When an announced key can be added; 0 when nothing of it is known, or when it was added.
    function commitmentReadyAt(address node, bytes32 commitment) external view returns (uint64) {
        return _commitments[node][commitment];
    }

    /// @notice What is announced before a key. It names the node, so copying it from a waiting transaction gains nothing.
    function keyCommitment(address node, bytes32 key, bytes32 salt) public view returns (bytes32) {
        return Hashing.keyCommitment(block.chainid, address(this), node, key, salt);
    }

    /// @notice The name that receipts give a key.
    function keyIdOf(bytes32 key) public pure returns (bytes32) {
        return Hashing.receiptKeyId(key);
    }

    // ------------------------------------------------------------------------------------------------------------ private

    function _setEndpoint(address node, string calldata endpoint) private {
        if (bytes(endpoint).length > MAX_ENDPOINT_BYTES) revert EndpointTooLong(bytes(endpoint).length);
        _nodes[node].endpoint = endpoint;
        emit EndpointChanged(node, endpoint);
    }

    function _setPayout(address node, address payout) private {
        if (payout == address(0)) revert ZeroPayout();
        _nodes[node].payout = payout;
        emit PayoutChanged(node, payout);
    }

    function _setJurisdiction(address node, bytes2 jurisdiction) private {
        if (jurisdiction != 0 && !(_isCapital(jurisdiction[0]) && _isCapital(jurisdiction[1]))) {
            revert InvalidJurisdiction(jurisdiction);
        }
        _nodes[node].jurisdiction = jurisdiction;
        emit JurisdictionChanged(node, jurisdiction);
    }

    function _isCapital(bytes1 letter) private pure returns (bool) {
        return letter >= "A" && letter <= "Z";
    }

    function _add(address node, bytes32 key, bytes32 salt) private returns (bytes32 keyId) {
        if (key == 0) revert ZeroKey();
        bytes32 commitment = keyCommitment(node, key, salt);
        uint64 readyAt = _commitments[node][commitment];
        if (readyAt == 0) revert UnknownCommitment(commitment);
        if (block.timestamp < readyAt) revert CommitmentTooYoung(readyAt);
        delete _commitments[node][commitment];
        keyId = keyIdOf(key);
        if (_keys[keyId].node != address(0)) revert KeyAlreadyUsed(keyId);
        _keys[keyId] = KeyRecord(key, node, uint40(block.timestamp), NO_END, RevocationReason.None);
        _seat(node, keyId);
        emit KeyAdded(node, keyId, key, uint40(block.timestamp));
    }

    /// @dev Lists a key among those in force, after taking out those that ended.
    function _seat(address node, bytes32 keyId) private {
        bytes32[] storage open = _openKeys[node];
        uint256 i;
        while (i < open.length) {
            if (_keys[open[i]].until > block.timestamp) {
                ++i;
                continue;
            }
            open[i] = open[open.length - 1];
            open.pop();
        }
        if (open.length == MAX_KEYS) revert TooManyKeys(node);
        open.push(keyId);
    }

    /// @dev Gives a key in force its end, which can only come nearer.
    function _endBy(KeyRecord storage record, bytes32 keyId, uint40 end) private returns (uint40 until) {
        until = record.until;
        if (until <= block.timestamp) revert KeyNotInForce(keyId);
        if (end < until) record.until = until = end;
    }
}
