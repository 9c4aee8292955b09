// BLS keys for the scripts here, by a library that shares nothing with the contracts.
import { bls12_381 as bls } from "@noble/curves/bls12-381";
import { keccak256, concat, toBeHex, getBytes } from "ethers";

const SIGNATURE_TAG = "BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_";
const BASIC_TAG = "BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_NUL_";
const POSSESSION_TAG = "BLS_POP_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_";
const order = bls.G1.CURVE.n;

const words = (coordinates) => coordinates.flatMap((number) => [toBeHex(number >> 256n, 32), toBeHex(number & ((1n << 256n) - 1n), 32)]);
export const g1 = (point) => (point.equals(bls.G1.ProjectivePoint.ZERO) ? words([0n, 0n]) : words([point.toAffine().x, point.toAffine().y]));
export const g2 = (point) => {
  const { x, y } = point.toAffine();
  return words([x.c0, x.c1, y.c0, y.c1]);
};
const hash = (message, tag) => bls.G2.hashToCurve(getBytes(message), { DST: tag });

export class Key {
  constructor(secret) {
    this.secret = secret;
    this.point = bls.G1.ProjectivePoint.BASE.multiply(secret);
    this.words = g1(this.point);
    this.keyId = keccak256(concat(this.words));
  }
  sign = (digest) => g2(hash(digest, SIGNATURE_TAG).multiply(this.secret));
  /** Under the tag of the basic scheme, which no contract here accepts. */
  signBasic = (digest) => g2(hash(digest, BASIC_TAG).multiply(this.secret));
  prove = () => g2(hash(this.point.toRawBytes(true), POSSESSION_TAG).multiply(this.secret));
}

/** The key whose signature is the aggregate of these keys' signatures. */
export const sum = (keys) => new Key(keys.reduce((total, key) => (total + key.secret) % order, 0n));
