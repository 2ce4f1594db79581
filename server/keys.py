"""Where the vault's keys are kept, as the settings say."""

from server import kms
from server.settings import Settings
from server.vault import KeyProvider, LocalKeyring, SeveralProviders


def open_keys(settings: Settings) -> KeyProvider:
    """Return all key providers that are set up, the one that seals first.

    Raises VaultError when one can't be used; whether a service answers is seen when it is first needed.
    """
    providers: list[KeyProvider] = []
    keyring: LocalKeyring | None = settings.keyring()
    if keyring is not None:
        providers.append(keyring)
    if settings.kms_keys:
        providers.append(kms.connect(settings.kms_keys))
    providers.sort(key=lambda provider: provider.name != settings.vault_seals_with)
    return providers[0] if len(providers) == 1 else SeveralProviders(tuple(providers))
