#!/bin/sh
# Builds engine.wasm and says whether its bytes are the checked-in ones.
#
#   build.sh [--install]     --install puts the result in the place of the checked-in file
#
# Needs: Debian 12 (apt-get, dpkg), cargo 1.95 from rustup with its rust-lld, about 1.5 GB in the cache folder.
# The compiler is Debian's rustc-web 1.96, unpacked and never installed; its packages are pinned by sha256 in
# toolchain.sha256. There is no prebuilt standard library for wasm32 in it, so cargo builds that too (-Zbuild-std).
# PLACET_ENGINE_CACHE overrides the cache folder; .deb files found there are used, otherwise apt-get fetches them.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
target_file=$here/../src/placet/sandbox/engine/engine.wasm
cache=${PLACET_ENGINE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/placet-engine}
mkdir -p "$cache"

if [ ! -d "$cache/root" ]; then
    cd "$cache"
    if ! sha256sum --status -c "$here/toolchain.sha256" 2>/dev/null; then
        apt-get download rustc-web=1.96.0+dfsg1-1~deb12u2 rust-web-src=1.96.0+dfsg1-1~deb12u2 \
            libstd-rust-web-1.96=1.96.0+dfsg1-1~deb12u2 libstd-rust-web-dev=1.96.0+dfsg1-1~deb12u2 \
            libllvm22=1:22.1.8-1~deb12u1
        sha256sum -c "$here/toolchain.sha256"
    fi
    for package in *.deb; do dpkg -x "$package" root.part; done
    mv root.part root
fi

root=$(cd "$cache/root" && pwd -P)
sysroot=$(rustup run stable rustc --print sysroot)
cargo=$(rustup which --toolchain stable cargo)
export LD_LIBRARY_PATH=$root/usr/lib/x86_64-linux-gnu
export RUSTC=$root/usr/bin/rustc RUSTC_BOOTSTRAP=1
# The module's own stack (256 KiB) must end before the host's does, or the limit would depend on the code generator.
# Paths are remapped so that the bytes do not depend on where this is built.
export RUSTFLAGS="-Clinker=$sysroot/lib/rustlib/x86_64-unknown-linux-gnu/bin/rust-lld -Clinker-flavor=wasm-ld \
-Clink-arg=-zstack-size=262144 --cfg getrandom_backend=\"custom\" \
--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo --remap-path-prefix=$here=/engine --remap-path-prefix=$root=/toolchain"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/target}

cd "$here"
"$cargo" build --locked --profile wasm -p placet-rego-wasm --target wasm32-unknown-unknown -Zbuild-std=std,panic_abort
built=$CARGO_TARGET_DIR/wasm32-unknown-unknown/wasm/placet_rego_wasm.wasm

if [ "${1:-}" = "--install" ]; then
    cp "$built" "$target_file"
    (cd "$(dirname "$target_file")" && sha256sum engine.wasm > engine.wasm.sha256)
fi
want=$(cut -d' ' -f1 "$target_file.sha256")
got=$(sha256sum "$built" | cut -d' ' -f1)
echo "built      $got"
echo "checked in $want"
if [ "$got" = "$want" ]; then echo "same bytes"; else echo "OTHER BYTES"; exit 1; fi
