// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {Ownable, Ownable2Step} from "@openzeppelin/contracts/access/Ownable2Step.sol";
import {IOperatorRegistry} from "./interfaces/IOperatorRegistry.sol";
import {IStakeSource} from "./interfaces/IStakeSource.sol";
import {BLS12381} from "./libraries/BLS12381.sol";
import {Hashing} from "./libraries/Hashing.sol";
import {StakeRecord, StakeRecords} from "./libraries/StakeRecords.sol";
import {G1, G2, OperatorView, QuorumProof} from "./Types.sol";

/// @title Who the operators are, epoch by epoch
/// @notice Owns the operators' BLS keys, what they weigh, and the history of both. Whatever gives anyone a larger share of the total
/// (a new key, more stake, the exit of another) is queued, visible for the activation delay, and activated together with everything
/// else that is due as one new epoch. Ejection is immediate and can only take away: the ejected stake goes on counting in the total,
/// signed by nobody, until the delay is over, so ejecting others never lets those who remain reach a quorum they could not reach before.
/// @dev Not upgradeable. Stake records are per (key, first epoch) and are closed, never changed.
contract OperatorRegistry is IOperatorRegistry, Ownable2Step {
    using BLS12381 for G1;

    /// @notice Where a key stands. A key that is gone never returns.
    enum KeyState {
        Unknown,
        Joining,
        Active,
        Leaving,
        Gone
    }

    /// @notice What a queued change does once it is due.
    enum ChangeKind {
        Join,
        Restake,
        Leave,
        Vacate
    }

    /// @notice A registered key.
    struct KeyRecord {
        address operator;
        KeyState state;
        bool restakeQueued;
        bytes32 busKey;
        G1 key;
    }

    /// @notice A change of the set that waits for its time.
    struct Change {
        bytes32 keyId;
        uint96 stake;
        uint64 readyAt;
        ChangeKind kind;
    }

    /// @dev All that verification reads of the current epoch, in one slot. `pauseSet` says whether the pause must be looked at.
    struct Current {
        bytes24 setHash;
        uint32 epoch;
        bool hasVacancy;
        bool pauseSet;
    }

    /// @dev What verification reads of a superseded epoch, in one slot.
    struct Superseded {
        bytes24 setHash;
        uint40 since;
        bool hasVacancy;
    }

    /// @dev The rest of an epoch.
    struct EpochDetails {
        G1 apk;
        uint96 totalStake;
        uint96 vacantStake;
        uint64 activatedAt;
    }

    /// @dev The last pause.
    struct Pause {
        uint64 until;
        uint64 possibleAt;
    }

    /// @notice A key was registered; it counts from the first activation after `readyAt` on.
    event KeyRegistered(
        address indexed operator, bytes32 indexed keyId, G1 key, bytes32 busKey, uint96 stake, uint64 readyAt
    );
    /// @notice A change of a key's stake was queued.
    event RestakeQueued(address indexed operator, bytes32 indexed keyId, uint96 stake, uint64 readyAt);
    /// @notice A key's exit was queued.
    event LeaveQueued(address indexed operator, bytes32 indexed keyId, uint64 readyAt);
    /// @notice A key counts from this epoch on.
    event KeyActivated(address indexed operator, bytes32 indexed keyId, uint64 indexed epoch, uint96 stake);
    /// @notice A key's stake is another from this epoch on.
    event StakeChanged(address indexed operator, bytes32 indexed keyId, uint64 indexed epoch, uint96 stake);
    /// @notice A key does not count any more from this epoch on.
    event KeyRetired(address indexed operator, bytes32 indexed keyId, uint64 indexed epoch);
    /// @notice The owner took a key out at once; `epoch` is the first without it.
    event KeyEjected(address indexed operator, bytes32 indexed keyId, uint64 indexed epoch);
    /// @notice Certificates of older epochs count no more.
    event MinEpochRaised(uint64 indexed minEpoch);
    /// @notice A new operator set counts from now on.
    event EpochActivated(uint64 indexed epoch, G1 apk, uint96 totalStake, uint96 vacantStake);
    /// @notice Consumption is paused; it resumes by itself.
    event ConsumptionPaused(uint64 until, uint64 pausableAt);
    /// @notice Consumption was resumed before its time.
    event ConsumptionResumed();

    /// @notice Only the operator or the registry's owner may do this.
    error NotOperatorNorOwner(address caller);
    /// @notice The key is the point at infinity.
    error InfiniteKey();
    /// @notice The bus key or the operator is zero.
    error ZeroIdentity();
    /// @notice This key, or its negative, was registered before. A key is never used twice.
    error KeyAlreadyUsed(bytes32 keyId);
    /// @notice The operator has a key that is not leaving.
    error OperatorHasKey(address operator);
    /// @notice The stake source gives the operator nothing, so it is not admitted.
    error NoStake(address operator);
    /// @notice The stake source gives more than the arithmetic here is safe for.
    error StakeTooLarge(uint96 stake);
    /// @notice The set, those joining and leaving included, is full.
    error TooManyOperators();
    /// @notice The proof of possession is not one of this key.
    error InvalidPossession(bytes32 keyId);
    /// @notice The key did not sign that it belongs to this operator and bus key.
    error InvalidBinding(bytes32 keyId);
    /// @notice The key does not count now.
    error KeyNotActive(bytes32 keyId);
    /// @notice A change of this key's stake waits already.
    error RestakeAlreadyQueued(bytes32 keyId);
    /// @notice The stake source says what counts already.
    error StakeUnchanged(bytes32 keyId);
    /// @notice No queued change is due.
    error NothingToActivate();
    /// @notice The key neither counts nor waits.
    error NothingToEject(bytes32 keyId);
    /// @notice Apk and total are not those of this epoch.
    error SetMismatch(uint64 epoch);
    /// @notice Non-signers are not strictly ascending by key id.
    error NonSignersNotAscending(bytes32 keyId);
    /// @notice A non-signer was no operator in this epoch.
    error UnknownNonSigner(bytes32 keyId);
    /// @notice Pausing is possible again only later.
    error PauseCoolingDown(uint64 pausableAt);
    /// @notice Nothing is paused.
    error NotPaused();

    /// @notice Most keys that may be joining, active and leaving together; keeps one activation inside one transaction.
    uint256 public constant MAX_OPERATORS = 64;
    /// @notice Largest stake of one key, so that totals fit 96 bits.
    uint96 public constant MAX_STAKE = type(uint96).max / 256;
    /// @notice How long a pause lasts unless it is ended sooner, in seconds.
    uint64 public constant PAUSE_DURATION = 1 days;
    /// @notice How long after a pause's end there can be no other, in seconds.
    uint64 public constant PAUSE_COOLDOWN = 7 days;

    /// @inheritdoc IOperatorRegistry
    IStakeSource public immutable stakeSource;
    /// @inheritdoc IOperatorRegistry
    uint64 public immutable activationDelay;

    Current private _current;
    /// @inheritdoc IOperatorRegistry
    uint64 public minEpoch;
    Pause private _pause;
    mapping(uint64 epoch => Superseded) private _superseded;
    mapping(uint64 epoch => EpochDetails) private _details;

    mapping(bytes32 keyId => KeyRecord) private _keys;
    mapping(bytes32 keyId => StakeRecord) private _stakes;
    mapping(bytes32 keyId => StakeRecord[]) private _closedStakes;
    mapping(bytes32 xHash => bool) private _xUsed;
    bytes32[] private _keyIds;

    /// @notice The operator's key that is joining or active.
    mapping(address operator => bytes32 keyId) public keyOf;
    /// @inheritdoc IOperatorRegistry
    mapping(address operator => uint96 stake) public countedStakeOf;
    /// @notice Keys that are joining, active or leaving.
    uint256 public seatsTaken;

    Change[] private _changes;
    /// @notice The first queued change that was not activated yet.
    uint256 public nextChange;

    /// @param stakeSource_ where stake comes from
    /// @param activationDelay_ seconds between queueing a change and the earliest activation; 0 only in development
    /// @param owner_ may register operators, eject and pause
    constructor(IStakeSource stakeSource_, uint64 activationDelay_, address owner_) Ownable(owner_) {
        BLS12381.selfTest();
        stakeSource = stakeSource_;
        activationDelay = activationDelay_;
    }

    // ------------------------------------------------------------------------------------------------ joining and leaving

    /// @notice Registers an operator's BLS key and its bus key, and queues it. By the operator itself or by the owner.
    /// @param operator whose key it is; the stake source must give it stake
    /// @param key the BLS public key
    /// @param busKey the Ed25519 public key that signs the operator's messages
    /// @param possession proof of possession of `key` over its compressed form, under the tag for proofs of possession
    /// @param binding signature by `key` over {registrationDigest}
    /// @return keyId the key's name
    function register(address operator, G1 calldata key, bytes32 busKey, G2 calldata possession, G2 calldata binding)
        external
        returns (bytes32 keyId)
    {
        if (msg.sender != operator && msg.sender != owner()) revert NotOperatorNorOwner(msg.sender);
        if (operator == address(0) || busKey == 0) revert ZeroIdentity();
        if (keyOf[operator] != 0) revert OperatorHasKey(operator);
        if (seatsTaken == MAX_OPERATORS) revert TooManyOperators();

        keyId = _claimKey(operator, key, busKey, possession, binding);
        uint96 stake = _sourceStake(operator);
        if (stake == 0) revert NoStake(operator);

        keyOf[operator] = keyId;
        ++seatsTaken;
        _keyIds.push(keyId);
        uint64 readyAt = _queue(keyId, stake, ChangeKind.Join);
        emit KeyRegistered(operator, keyId, key, busKey, stake, readyAt);
    }

    /// @notice Queues the exit of an active key. By its operator or by the owner. The operator may register its next key at once.
    function deregister(bytes32 keyId) external {
        KeyRecord storage record = _keys[keyId];
        address operator = record.operator;
        if (msg.sender != operator && msg.sender != owner()) revert NotOperatorNorOwner(msg.sender);
        if (record.state != KeyState.Active) revert KeyNotActive(keyId);
        record.state = KeyState.Leaving;
        delete keyOf[operator];
        emit LeaveQueued(operator, keyId, _queue(keyId, 0, ChangeKind.Leave));
    }

    /// @notice Queues the stake that the source reports now for an active key. Anyone may.
    /// @dev At activation the lesser of this and what the source then reports counts, so an increase is seen for the whole delay.
    function queueRestake(bytes32 keyId) external {
        KeyRecord storage record = _keys[keyId];
        if (record.state != KeyState.Active) revert KeyNotActive(keyId);
        if (record.restakeQueued) revert RestakeAlreadyQueued(keyId);
        uint96 stake = _sourceStake(record.operator);
        if (stake == _stakes[keyId].stake()) revert StakeUnchanged(keyId);
        record.restakeQueued = true;
        emit RestakeQueued(record.operator, keyId, stake, _queue(keyId, stake, ChangeKind.Restake));
    }

    /// @notice Makes all queued changes that are due one new epoch. Anyone may.
    /// @return epoch the current epoch afterwards
    function activate() external returns (uint64 epoch) {
        uint64 current = _current.epoch;
        epoch = current + 1;
        EpochDetails memory next = _details[current];
        uint256 cursor = nextChange;
        uint256 end = _changes.length;
        if (cursor == end || _changes[cursor].readyAt > block.timestamp) revert NothingToActivate();
        bool changed;
        while (cursor < end && _changes[cursor].readyAt <= block.timestamp) {
            if (_apply(_changes[cursor], next, epoch)) changed = true;
            ++cursor;
        }
        nextChange = cursor;
        if (!changed) return current;
        _open(epoch, next);
    }

    /// @notice Takes keys out at once, all in one new epoch, and makes every certificate of earlier epochs worthless.
    /// @dev Their stake stays in the total, signed by nobody, until the activation delay is over.
    function eject(bytes32[] calldata keyIds) external onlyOwner {
        uint64 current = _current.epoch;
        uint64 epoch = current + 1;
        EpochDetails memory next = _details[current];
        uint96 vacated;
        bool changed;
        for (uint256 i = 0; i < keyIds.length; ++i) {
            KeyRecord storage record = _keys[keyIds[i]];
            KeyState state = record.state;
            if (state == KeyState.Unknown || state == KeyState.Gone) revert NothingToEject(keyIds[i]);
            if (state != KeyState.Joining) {
                uint96 stake = _close(keyIds[i], epoch);
                vacated += stake;
                next.apk = next.apk.minus(record.key);
                countedStakeOf[record.operator] -= stake;
                changed = true;
            }
            _forget(record, keyIds[i]);
            emit KeyEjected(record.operator, keyIds[i], epoch);
        }
        if (!changed) return;
        next.vacantStake += vacated;
        _queue(0, vacated, ChangeKind.Vacate);
        _open(epoch, next);
        minEpoch = epoch;
        emit MinEpochRaised(epoch);
    }

    // ------------------------------------------------------------------------------------------------------------ pausing

    /// @notice Stops consumption for {PAUSE_DURATION}. It resumes by itself, and cannot be stopped again before the cool-down is over.
    function pause() external onlyOwner {
        uint64 time = uint64(block.timestamp);
        if (time < _pause.possibleAt) revert PauseCoolingDown(_pause.possibleAt);
        Pause memory next = Pause(time + PAUSE_DURATION, time + PAUSE_DURATION + PAUSE_COOLDOWN);
        _pause = next;
        _current.pauseSet = true;
        emit ConsumptionPaused(next.until, next.possibleAt);
    }

    /// @notice Resumes consumption before its time. The cool-down is not shortened.
    function resume() external onlyOwner {
        if (_pause.until <= block.timestamp) revert NotPaused();
        _pause.until = uint64(block.timestamp);
        _current.pauseSet = false;
        emit ConsumptionResumed();
    }

    // -------------------------------------------------------------------------------------------------------------- views

    /// @inheritdoc IOperatorRegistry
    function quorumAt(uint64 epoch, QuorumProof calldata proof)
        external
        view
        returns (G1 memory signersKey, uint96, EpochState state, uint64 supersededAt, uint64 pausedUntil)
    {
        bytes24 setHash;
        bool hasVacancy;
        (state, supersededAt, pausedUntil, setHash, hasVacancy) = _lookUp(epoch);
        if (setHash != _setHashIn(proof)) revert SetMismatch(epoch);
        // the total is the set's, so it fits
        uint256 signed = proof.totalStake;
        if (hasVacancy) signed -= _details[epoch].vacantStake;
        G1[] calldata absent = proof.nonSigners;
        signersKey = BLS12381.accumulator(proof.apk);
        if (absent.length != 0) {
            // -(-apk + absent): one addition for each of them
            signersKey.negate();
            unchecked {
                // members of the set, each once
                signed -= _addAbsent(signersKey, absent, epoch);
            }
            signersKey.negate();
        }
        assembly ("memory-safe") {
            // the answer's other four words in the accumulator's room, right behind the key
            mstore(add(signersKey, 128), signed)
            mstore(add(signersKey, 160), state)
            mstore(add(signersKey, 192), supersededAt)
            mstore(add(signersKey, 224), pausedUntil)
            return(signersKey, 256)
        }
    }

    /// @inheritdoc IOperatorRegistry
    function epochStatusAt(uint64 epoch)
        external
        view
        returns (EpochState state, uint64 supersededAt, uint64 pausedUntil)
    {
        (state, supersededAt, pausedUntil,,) = _lookUp(epoch);
    }

    /// @inheritdoc IOperatorRegistry
    function currentEpoch() external view returns (uint64) {
        return _current.epoch;
    }

    /// @notice Until when consumption is paused, unix seconds, and from when on it can be paused again.
    function pauseStatus() external view returns (uint64 pausedUntil, uint64 pausableAt) {
        return (_pause.until, _pause.possibleAt);
    }

    /// @inheritdoc IOperatorRegistry
    function setAt(uint64 epoch)
        external
        view
        returns (G1 memory apk, uint128 totalStake, uint64 supersededAt, uint64 activatedAt)
    {
        EpochDetails memory details = _details[epoch];
        return (details.apk, details.totalStake, _superseded[epoch].since, details.activatedAt);
    }

    /// @notice Ejected stake that still counts in an epoch's total and that nobody can sign for.
    function vacantStakeAt(uint64 epoch) external view returns (uint96) {
        return _details[epoch].vacantStake;
    }

    /// @inheritdoc IOperatorRegistry
    function operatorsAt(uint64 epoch) external view returns (OperatorView[] memory operators) {
        uint256 known = _keyIds.length;
        operators = new OperatorView[](known);
        uint256 count;
        for (uint256 i = 0; i < known; ++i) {
            bytes32 keyId = _keyIds[i];
            uint96 stake = stakeAt(keyId, epoch);
            if (stake == 0) continue;
            uint256 place = count++;
            for (; place > 0 && operators[place - 1].keyId > keyId; --place) {
                operators[place] = operators[place - 1];
            }
            KeyRecord storage record = _keys[keyId];
            operators[place] = OperatorView(record.operator, keyId, record.key, record.busKey, stake);
        }
        assembly ("memory-safe") {
            mstore(operators, count)
        }
    }

    /// @notice A key's stake in an epoch; 0 when it was not in the set, or when the epoch is not yet.
    function stakeAt(bytes32 keyId, uint64 epoch) public view returns (uint96) {
        uint256 stake = _stakes[keyId].stakeIn(epoch);
        return uint96(stake == 0 ? _closedStakeAt(keyId, epoch) : stake);
    }

    /// @notice A key's registration.
    function keyRecord(bytes32 keyId) external view returns (KeyRecord memory) {
        return _keys[keyId];
    }

    /// @notice All changes from {nextChange} on: those that wait, and their times.
    function queuedChanges() external view returns (Change[] memory waiting) {
        uint256 first = nextChange;
        waiting = new Change[](_changes.length - first);
        for (uint256 i = 0; i < waiting.length; ++i) {
            waiting[i] = _changes[first + i];
        }
    }

    /// @notice What a key signs, under the signature tag, to say that it belongs to an operator and a bus key.
    function registrationDigest(address operator, bytes32 keyId, bytes32 busKey) public view returns (bytes32) {
        return
            Hashing.registrationDigest(
                operator, keyId, busKey, Hashing.registrationDomain(block.chainid, address(this))
            );
    }

    // ------------------------------------------------------------------------------------------------------------ private

    /// @dev One slot for the current epoch; the minimum is looked at only for older ones.
    function _lookUp(uint64 epoch)
        private
        view
        returns (EpochState state, uint64 supersededAt, uint64 pausedUntil, bytes24 setHash, bool hasVacancy)
    {
        // one read, and the members from their places in the slot
        uint256 word;
        assembly ("memory-safe") {
            word := sload(_current.slot)
        }
        uint256 currentEpoch_ = (word >> 192) & type(uint32).max;
        if ((word >> 232) & 1 == 1) pausedUntil = _pause.until;
        if (epoch == currentEpoch_) {
            return (EpochState.Current, 0, pausedUntil, bytes24(bytes32(word << 64)), (word >> 224) & 1 == 1);
        }
        if (epoch > currentEpoch_) revert UnknownEpoch(epoch);
        Superseded memory old = _superseded[epoch];
        state = epoch < minEpoch ? EpochState.Revoked : EpochState.Superseded;
        return (state, old.since, pausedUntil, old.setHash, old.hasVacancy);
    }

    /// @dev Adds the absent keys to an accumulator, demands that each was an operator in the epoch, and sums what they weigh. This loop
    /// is what a missing operator costs, so its numbers are whole words.
    function _addAbsent(G1 memory accumulator, G1[] calldata absent, uint256 epoch)
        private
        view
        returns (uint256 stake)
    {
        uint256 previous;
        G1 calldata key;
        uint256 end;
        assembly ("memory-safe") {
            // the array was found to lie inside the calldata, its members one after the other
            key := absent.offset
            end := add(absent.offset, shl(7, absent.length))
        }
        while (true) {
            bytes32 keyId = accumulator.accumulate(key);
            uint256 missing = _stakes[keyId].stakeIn(epoch);
            if (missing == 0) missing = _closedStakeAt(keyId, epoch);
            if (missing == 0) revert UnknownNonSigner(keyId);
            if (uint256(keyId) <= previous) revert NonSignersNotAscending(keyId);
            previous = uint256(keyId);
            bool done;
            unchecked {
                // members of one set, whose total fits
                stake += missing;
            }
            assembly ("memory-safe") {
                key := add(key, 128)
                done := eq(key, end)
            }
            if (done) return stake;
        }
    }

    /// @dev The stake by the records that a change of stake closed, the latest first.
    function _closedStakeAt(bytes32 keyId, uint256 epoch) private view returns (uint256 stake) {
        StakeRecord[] storage closed = _closedStakes[keyId];
        for (uint256 i = closed.length; i > 0 && stake == 0; --i) {
            stake = closed[i - 1].stakeIn(epoch);
        }
    }

    function _claimKey(address operator, G1 calldata key_, bytes32 busKey, G2 calldata possession, G2 calldata binding)
        private
        returns (bytes32 keyId)
    {
        G1 memory key = key_;
        if (key.isInfinity()) revert InfiniteKey();
        keyId = key.keyId();
        bytes32 xHash = keccak256(abi.encode(key.xh, key.xl));
        if (_xUsed[xHash]) revert KeyAlreadyUsed(keyId);
        if (!key.isSignedBy(BLS12381.hashPossession(key), possession)) revert InvalidPossession(keyId);
        if (!key.isSignedBy(BLS12381.hashDigest(registrationDigest(operator, keyId, busKey)), binding)) {
            revert InvalidBinding(keyId);
        }
        _xUsed[xHash] = true;
        KeyRecord storage record = _keys[keyId];
        record.operator = operator;
        record.state = KeyState.Joining;
        record.busKey = busKey;
        record.key = key;
    }

    function _queue(bytes32 keyId, uint96 stake, ChangeKind kind) private returns (uint64 readyAt) {
        readyAt = uint64(block.timestamp) + activationDelay;
        _changes.push(Change(keyId, stake, readyAt, kind));
    }

    /// @dev Applies one due change to the set that is being built. False when the change has lost its object.
    function _apply(Change storage change, EpochDetails memory next, uint64 epoch) private returns (bool) {
        ChangeKind kind = change.kind;
        if (kind == ChangeKind.Vacate) {
            next.totalStake -= change.stake;
            next.vacantStake -= change.stake;
            return true;
        }
        bytes32 keyId = change.keyId;
        KeyRecord storage record = _keys[keyId];
        KeyState state = record.state;
        if (kind == ChangeKind.Join) {
            return state == KeyState.Joining && _join(record, keyId, change.stake, next, epoch);
        }
        if (kind == ChangeKind.Leave) {
            if (state != KeyState.Leaving) return false;
            _retire(record, keyId, next, epoch);
            return true;
        }
        record.restakeQueued = false;
        if (state != KeyState.Active && state != KeyState.Leaving) return false;
        return _restake(record, keyId, change.stake, next, epoch);
    }

    function _join(KeyRecord storage record, bytes32 keyId, uint96 queued, EpochDetails memory next, uint64 epoch)
        private
        returns (bool)
    {
        uint96 stake = _atMostSourceStake(record.operator, queued, epoch);
        if (stake == 0) {
            _forget(record, keyId);
            emit KeyRetired(record.operator, keyId, epoch);
            return false;
        }
        record.state = KeyState.Active;
        _stakes[keyId] = StakeRecords.open(stake, epoch);
        countedStakeOf[record.operator] += stake;
        next.apk = next.apk.add(record.key);
        next.totalStake += stake;
        emit KeyActivated(record.operator, keyId, epoch, stake);
        return true;
    }

    function _restake(KeyRecord storage record, bytes32 keyId, uint96 queued, EpochDetails memory next, uint64 epoch)
        private
        returns (bool)
    {
        uint96 stake = _atMostSourceStake(record.operator, queued, epoch);
        if (stake == 0) {
            _retire(record, keyId, next, epoch);
            return true;
        }
        StakeRecord closing = _stakes[keyId];
        uint96 before = closing.stake();
        if (stake == before) return false;
        _stakes[keyId] = StakeRecords.open(stake, epoch);
        countedStakeOf[record.operator] = countedStakeOf[record.operator] - before + stake;
        next.totalStake = next.totalStake - before + stake;
        _closedStakes[keyId].push(closing.closedAt(epoch));
        emit StakeChanged(record.operator, keyId, epoch, stake);
        return true;
    }

    function _retire(KeyRecord storage record, bytes32 keyId, EpochDetails memory next, uint64 epoch) private {
        uint96 stake = _close(keyId, epoch);
        countedStakeOf[record.operator] -= stake;
        next.apk = next.apk.minus(record.key);
        next.totalStake -= stake;
        _forget(record, keyId);
        emit KeyRetired(record.operator, keyId, epoch);
    }

    /// @dev Ends a key's record before `epoch` and answers what it weighed.
    function _close(bytes32 keyId, uint64 epoch) private returns (uint96) {
        StakeRecord record = _stakes[keyId];
        _stakes[keyId] = record.closedAt(epoch);
        return record.stake();
    }

    function _forget(KeyRecord storage record, bytes32 keyId) private {
        record.state = KeyState.Gone;
        --seatsTaken;
        if (keyOf[record.operator] == keyId) delete keyOf[record.operator];
    }

    /// @dev Closes the current epoch and opens the next with what was built.
    function _open(uint64 epoch, EpochDetails memory next) private {
        next.activatedAt = uint64(block.timestamp);
        _details[epoch] = next;
        Current memory current = _current;
        _superseded[epoch - 1] = Superseded(current.setHash, uint40(block.timestamp), current.hasVacancy);
        bool pauseSet = current.pauseSet && block.timestamp < _pause.until;
        _current = Current(_setHash(next.apk, next.totalStake), uint32(epoch), next.vacantStake != 0, pauseSet);
        emit EpochActivated(epoch, next.apk, next.totalStake, next.vacantStake);
    }

    function _sourceStake(address operator) private view returns (uint96 stake) {
        stake = stakeSource.stakeOf(operator, uint64(_current.epoch) + 1);
        if (stake > MAX_STAKE) revert StakeTooLarge(stake);
    }

    function _atMostSourceStake(address operator, uint96 queued, uint64 epoch) private view returns (uint96) {
        uint96 reported = stakeSource.stakeOf(operator, epoch);
        return reported < queued ? reported : queued;
    }

    /// @dev The hash of the apk and the total that a proof states, which lie one after the other.
    function _setHashIn(QuorumProof calldata proof) private pure returns (bytes24) {
        bytes32 hash;
        assembly ("memory-safe") {
            let free := mload(0x40)
            calldatacopy(free, proof, 160)
            hash := keccak256(free, 160)
        }
        return bytes24(hash);
    }

    function _setHash(G1 memory apk, uint128 totalStake) private pure returns (bytes24) {
        return bytes24(keccak256(abi.encode(apk.xh, apk.xl, apk.yh, apk.yl, totalStake)));
    }
}
