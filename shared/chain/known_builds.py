"""Runtime code of the contracts whose decisions we can re-decide: facts, as a frozen table.

An implementation's code on chain contains its own address (the UUPS `__self` immutable), so it is looked up
by the hash of its bytes with the 32 bytes at each immutable offset zeroed. A proxy has no immutables: its
masked hash is the code hash of its account. Specification: contracts sections 1.1 and 6.
"""

import msgspec


class KnownBuild(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One contract as one compiler run made it; operators pin further builds in the same shape, as JSON.

    `contract` is `DstackKms`, `DstackApp` or `ERC1967Proxy`; `length` and `immutable_offsets` count bytes of
    the runtime code; `masked_keccak256` is `0x` and 64 lowercase hex digits. `node build.mjs --describe` in
    contracts/ prints the rows of any build.
    """

    contract: str
    build: str
    evm: str
    length: int
    immutable_offsets: tuple[int, ...]
    masked_keccak256: str


# "upstream" is Dstack-TEE/dstack at 312dc605, compiled by solc 0.8.24, optimizer at 200 runs, from sources
# named contracts/*.sol and @openzeppelin/*. "upstream-forge" is the same tree as forge 1.7.1 builds it with
# all submodules checked out recursively: the metadata hash in the code covers paths and remappings, so a
# checkout with other submodules gives another build, which an operator pins.
KNOWN_BUILDS: tuple[KnownBuild, ...] = (
    # begin: written by contracts/build.mjs
    KnownBuild(
        contract="DstackApp",
        build="dstack-cloud",
        evm="cancun",
        length=6179,
        immutable_offsets=(3681, 3722, 4216),
        masked_keccak256="0xd8960e1f2c8c72643cbe2ff3dfa4586bb9f447ecdebad5077387757be243b5ad",
    ),
    KnownBuild(
        contract="DstackKms",
        build="dstack-cloud",
        evm="cancun",
        length=11660,
        immutable_offsets=(6625, 6667, 7084),
        masked_keccak256="0x204b362f776e9cc9391baa804327f91bbba58c98b36be932800f00901c9d8af7",
    ),
    KnownBuild(
        contract="ERC1967Proxy",
        build="dstack-cloud",
        evm="cancun",
        length=163,
        immutable_offsets=(),
        masked_keccak256="0x87e53a809f144fdd0c99f4783bcbe2548525f27de7fa11ee8c3fddd8942e091d",
    ),
    # end: written by contracts/build.mjs
    KnownBuild(
        contract="DstackApp",
        build="upstream",
        evm="paris",
        length=6415,
        immutable_offsets=(4054, 4095, 4580),
        masked_keccak256="0x6bd3d991ff4ed86a8d269d6f1101a1f5617f640c322d161c0d953c7fd0b6debb",
    ),
    KnownBuild(
        contract="DstackKms",
        build="upstream",
        evm="paris",
        length=11862,
        immutable_offsets=(6743, 6785, 7194),
        masked_keccak256="0x4d0a8c4a62399f73fa08df867a8357faa0aed1fd6a58d73baa15488956544523",
    ),
    KnownBuild(
        contract="ERC1967Proxy",
        build="upstream",
        evm="paris",
        length=170,
        immutable_offsets=(),
        masked_keccak256="0xa2656e28e2716230f1a5a059d363c8a25bfd8ec7647779a282fb4a7ada8d2cc1",
    ),
    KnownBuild(
        contract="DstackApp",
        build="upstream",
        evm="shanghai",
        length=6297,
        immutable_offsets=(3992, 4033, 4516),
        masked_keccak256="0x56a06c0158a0d3aa9fe0a88c3d6b7603271cd03d5289b816039080cfa0766fe5",
    ),
    KnownBuild(
        contract="DstackKms",
        build="upstream",
        evm="shanghai",
        length=11632,
        immutable_offsets=(6639, 6681, 7088),
        masked_keccak256="0x00c1c0ecf71110e6ac64753e8e35a25a1e6fc45e50b404aa07fbe044ea475af5",
    ),
    KnownBuild(
        contract="ERC1967Proxy",
        build="upstream",
        evm="shanghai",
        length=163,
        immutable_offsets=(),
        masked_keccak256="0x0ee01a0ad06eb63a33927b0aea4f5d6ec99f15e5f08651356d633e69486518f3",
    ),
    KnownBuild(
        contract="DstackApp",
        build="upstream",
        evm="cancun",
        length=6297,
        immutable_offsets=(3992, 4033, 4516),
        masked_keccak256="0x5fbe15f9a1d6bbacd869e42c2eff45a8cbc50d9db136d2fc85d0ad8349c5d133",
    ),
    KnownBuild(
        contract="DstackKms",
        build="upstream",
        evm="cancun",
        length=11632,
        immutable_offsets=(6639, 6681, 7088),
        masked_keccak256="0x363829990e0ca1d661de06316775ee5994b0655daa897d253dc3863a92ef5bf4",
    ),
    KnownBuild(
        contract="ERC1967Proxy",
        build="upstream",
        evm="cancun",
        length=163,
        immutable_offsets=(),
        masked_keccak256="0x87e53a809f144fdd0c99f4783bcbe2548525f27de7fa11ee8c3fddd8942e091d",
    ),
    KnownBuild(
        contract="DstackApp",
        build="upstream-forge",
        evm="cancun",
        length=6297,
        immutable_offsets=(3992, 4033, 4516),
        masked_keccak256="0xe04cdd891f9cee42732b86abef267bf9ebd0814c40d19d458937a6db992c44a2",
    ),
    KnownBuild(
        contract="DstackKms",
        build="upstream-forge",
        evm="cancun",
        length=11632,
        immutable_offsets=(6639, 6681, 7088),
        masked_keccak256="0xea546aca60feaed373da9327e9e08122f040e25ca4e9a4e55fdd3ec23f9b7740",
    ),
    KnownBuild(
        contract="ERC1967Proxy",
        build="upstream-forge",
        evm="cancun",
        length=163,
        immutable_offsets=(),
        masked_keccak256="0xca408dce598c75e7ba774c64e719c5a7aab10a94f666f4f1f58afd822258342c",
    ),
)
