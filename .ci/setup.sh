# shellcheck shell=bash disable=SC2034
# What demo.sh, test.sh and .ci/run share: the packages, the Release build. Sourced with the project's root as the
# working directory.

packages=(g++ cmake ninja-build pkg-config libcli11-dev libyaml-cpp-dev nlohmann-json3-dev libfmt-dev libeigen3-dev
          libpcre2-dev coinor-libcbc-dev libbz2-dev zlib1g-dev catch2)

say() { printf '== %s\n' "$*"; }

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        echo "this needs root: run as root or install sudo, or install by hand: $*" >&2
        return 1
    fi
}

# install_missing PACKAGE...: apt installs those that are not there, after naming them.
install_missing() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] && return 0
    if ! command -v apt-get >/dev/null; then
        echo "no apt-get here: install the equivalents of ${missing[*]} by hand" >&2
        return 1
    fi
    say "installing with apt: ${missing[*]}"
    as_root apt-get update -q
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
}

# build PRESET [TARGET]: configures and builds; ccache is used where it is installed.
build() {
    local preset=$1 target=${2:-all} launcher=()
    command -v ccache >/dev/null &&
        launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache -DCMAKE_CUDA_COMPILER_LAUNCHER=ccache)
    say "building (preset $preset, target $target)"
    cmake --preset "$preset" "${launcher[@]}" >/dev/null
    cmake --build --preset "$preset" --target "$target"
}
