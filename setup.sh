#!/usr/bin/env bash
# Installs what building and testing need, and says what it installs. Sourced by quickstart.sh and test.sh; safe to
# run again. Usage: setup.sh build | test
set -euo pipefail

rust_min=1.90
say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "this needs root, to install packages and to make namespaces and mounts; run it with sudo"
command -v apt-get >/dev/null || fail "this script knows Debian's apt-get only; install the packages of setup.sh by hand"

packages_build="build-essential pkg-config ca-certificates curl e2fsprogs"
packages_image="docker-registry debootstrap"
packages_test="$packages_image erofs-utils umoci skopeo nftables iptables iproute2 containernetworking-plugins attr libcap2-bin busybox-static xz-utils bsdutils procps util-linux python3"

# Debian's docker-registry and podman start themselves; a test machine wants them quiet.
install_packages() {
  local missing=()
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} = 0 ] && return
  say "installing Debian packages: ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n1)" = "$1" ]; }

install_rust() {
  [ -e "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"
  if command -v cargo >/dev/null && at_least "$rust_min" "$(rustc --version | cut -d' ' -f2)"; then return; fi
  if ! command -v rustup >/dev/null; then
    if apt-cache show rustup >/dev/null 2>&1; then
      install_packages rustup
    else
      say "installing Rust by rustup, from its own site"
      curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal
      . "$HOME/.cargo/env"
    fi
  fi
  say "installing the stable Rust tool chain"
  rustup toolchain install stable --profile minimal --component clippy,rustfmt
  rustup default stable
}

install_kubectl() {
  command -v kubectl >/dev/null && return
  install_packages kubernetes-client
}

case "${1:-build}" in
  build) install_packages $packages_build; install_rust ;;
  quickstart) install_packages $packages_build $packages_image; install_rust ;;
  test) install_packages $packages_build $packages_test; install_rust; install_kubectl ;;
  *) fail "usage: setup.sh build|quickstart|test" ;;
esac
