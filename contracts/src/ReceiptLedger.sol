// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {Ownable, Ownable2Step} from "@openzeppelin/contracts/access/Ownable2Step.sol";
import {Hashing} from "./libraries/Hashing.sol";
import {Limits} from "./libraries/Limits.sol";
import {MerkleInclusion} from "./libraries/MerkleInclusion.sol";

/// @title Roots of receipts, in the order in which they came
/// @notice Owns when a poster vouched for which receipts. Roots are numbered from 0, and none is ever changed or removed, by anybody. They
/// are keyed by poster and root, so whoever posts a root first is in nobody's way; and a leaf names its poster, this contract and its
/// chain, so a root that was copied proves nothing of its copier.
/// @dev Says nothing of a receipt's content or signature. Where the receipts of a root lie, and when they were made, is in its event only.
contract ReceiptLedger is Ownable2Step {
    /// @notice A posted root.
    /// @param root Merkle root over `count` receipts
    /// @param poster who posted it, and whom its leaves name
    /// @param count number of receipts
    /// @param postedAt time of its block, unix seconds
    struct PostedRoot {
        bytes32 root;
        address poster;
        uint32 count;
        uint64 postedAt;
    }

    /// @notice Somebody may post from now on, or no more. What was posted stands.
    event PosterSet(address indexed poster, bool allowed);
    /// @notice A root was posted. Times are those of its first and last receipt, unix seconds; the hash is that of the place where they lie.
    event RootPosted(
        uint256 indexed rootIndex,
        address indexed poster,
        bytes32 indexed root,
        uint32 count,
        uint64 firstAt,
        uint64 lastAt,
        bytes32 uriHash
    );

    /// @notice The caller may not post.
    error NotPoster(address caller);
    /// @notice A root is not zero, and of one receipt at least.
    error EmptyRoot();
    /// @notice The first receipt is later than the last.
    error TimesOutOfOrder(uint64 firstAt, uint64 lastAt);
    /// @notice The last receipt is of a time that is yet to come.
    error ReceiptsFromFuture(uint64 lastAt);
    /// @notice The poster posted this root before, with another count.
    error RootPostedOtherwise(uint256 rootIndex);
    /// @notice There is no such root.
    error UnknownRoot(uint256 rootIndex);

    /// @notice Whether somebody may post.
    mapping(address poster => bool) public isPoster;
    /// @notice How many roots there are, and the number of the next.
    uint256 public rootCount;
    mapping(uint256 rootIndex => PostedRoot) private _roots;
    /// @dev rootIndex + 1; 0 is unknown.
    mapping(address poster => mapping(bytes32 root => uint256)) private _places;

    /// @param owner_ who says who may post
    constructor(address owner_) Ownable(owner_) {}

    /// @notice Lets somebody post, or no more.
    function setPoster(address poster, bool allowed) external onlyOwner {
        isPoster[poster] = allowed;
        emit PosterSet(poster, allowed);
    }

    /// @notice Posts a root. To post it again changes nothing, and answers its number.
    /// @param root Merkle root over the leaves of the receipts, see {leafHash}
    /// @param count number of leaves
    /// @param firstAt when the earliest of the receipts was made, unix seconds
    /// @param lastAt when the latest was made
    /// @param uriHash keccak of the URI where the receipts lie
    /// @return rootIndex the root's number
    function post(bytes32 root, uint32 count, uint64 firstAt, uint64 lastAt, bytes32 uriHash)
        external
        returns (uint256 rootIndex)
    {
        if (!isPoster[msg.sender]) revert NotPoster(msg.sender);
        if (root == 0 || count == 0) revert EmptyRoot();
        uint256 place = _places[msg.sender][root];
        if (place != 0) {
            rootIndex = place - 1;
            if (_roots[rootIndex].count != count) revert RootPostedOtherwise(rootIndex);
            return rootIndex;
        }
        if (firstAt > lastAt) revert TimesOutOfOrder(firstAt, lastAt);
        if (lastAt > block.timestamp + Limits.CLOCK_SLACK) revert ReceiptsFromFuture(lastAt);
        rootIndex = rootCount++;
        _places[msg.sender][root] = rootIndex + 1;
        _roots[rootIndex] = PostedRoot(root, msg.sender, count, uint64(block.timestamp));
        emit RootPosted(rootIndex, msg.sender, root, count, firstAt, lastAt, uriHash);
    }

    /// @notice Whether a receipt is in a posted root. Whose root it is, and since when it is posted, {rootAt} says.
    /// @param rootIndex the root's number
    /// @param receiptDigest sha-256 of what the receipt's signature is over
    /// @param index the receipt's position under the root, from 0
    /// @param proof siblings, lowest first
    function verify(uint256 rootIndex, bytes32 receiptDigest, uint256 index, bytes32[] calldata proof)
        external
        view
        returns (bool)
    {
        PostedRoot memory posted = rootAt(rootIndex);
        bytes32 leaf = leafHash(posted.poster, receiptDigest);
        return MerkleInclusion.isIncluded(leaf, index, posted.count, proof, posted.root);
    }

    /// @notice A posted root; reverts with UnknownRoot when there is none.
    function rootAt(uint256 rootIndex) public view returns (PostedRoot memory) {
        if (rootIndex >= rootCount) revert UnknownRoot(rootIndex);
        return _roots[rootIndex];
    }

    /// @notice Whether a poster posted a root, and its number.
    function find(address poster, bytes32 root) external view returns (bool posted, uint256 rootIndex) {
        uint256 place = _places[poster][root];
        return place == 0 ? (false, 0) : (true, place - 1);
    }

    /// @notice A receipt's leaf in a root of a poster: keccak(0x00 | hashStruct(ReceiptLeaf)).
    function leafHash(address poster, bytes32 receiptDigest) public view returns (bytes32) {
        return Hashing.receiptLeafHash(block.chainid, address(this), poster, receiptDigest);
    }
}
