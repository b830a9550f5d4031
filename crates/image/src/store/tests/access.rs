//! Who is given an image that is here.

use super::*;
use crate::testing::registry::{Fault, LOGIN, Registry};
use sampan_registry::{FetchError, Login};

fn login(password: &str) -> Credentials {
    Credentials::login(Login::Password { username: LOGIN.0.to_owned(), password: password.to_owned() })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_image_is_given_to_those_whom_its_registry_accepts() {
    let registry = Registry::start().await;
    let reference = registry.put_image("private/image", "tag", &[layer_with("a", "secret")]);
    let directory = tempfile::tempdir().unwrap();
    let config = RegistryConfig { insecure: vec![registry.address.to_string()], ..RegistryConfig::default() };
    let store = ImageStore::open(ImageStoreConfig::new(directory.path(), config)).await.unwrap();
    registry.fault(Fault::Login);
    let ask = async |credentials: Credentials, policy| {
        let image = store.ensure_as(&reference, policy, credentials, ProgressSender::none()).await;
        image.map(|image| image.id)
    };
    let refused = |answer: Result<_, ImageError>| {
        let error = answer.unwrap_err();
        let is_refusal =
            matches!(&error, ImageError::Fetch(FetchError::LoginNeeded { .. } | FetchError::LoginRejected { .. }));
        assert!(is_refusal, "{}", ErrorChain(&error));
    };
    refused(ask(Credentials::host(), PullPolicy::IfNotPresent).await);
    let id = ask(login(LOGIN.1), PullPolicy::IfNotPresent).await.unwrap();
    for policy in [PullPolicy::IfNotPresent, PullPolicy::Never] {
        refused(ask(Credentials::host(), policy).await);
        refused(ask(login("guessed"), policy).await);
        assert_eq!(ask(login(LOGIN.1), policy).await.unwrap(), id);
    }
    let by_id = store.ensure_as(&id.to_string(), PullPolicy::Never, Credentials::host(), ProgressSender::none()).await;
    refused(by_id.map(|image| image.id));
    // The node itself takes up what runs already, without asking anybody.
    assert_eq!(store.ensure(&reference, PullPolicy::Never, ProgressSender::none()).await.unwrap().id, id);
    let asked = registry.requests();
    assert_eq!(ask(login(LOGIN.1), PullPolicy::IfNotPresent).await.unwrap(), id);
    assert_eq!(registry.requests(), asked, "it was accepted a moment ago");
    registry.put_image("private/image", "tag", &[layer_with("a", "another secret")]);
    assert_ne!(ask(login(LOGIN.1), PullPolicy::Always).await.unwrap(), id);
    for credentials in [Credentials::host(), login(LOGIN.1)] {
        let nameless = store.ensure_as(&id.to_string(), PullPolicy::Never, credentials, ProgressSender::none()).await;
        assert!(matches!(nameless, Err(ImageError::Unknown { .. })), "nobody can be asked whose it is: {nameless:?}");
    }
    store.close().await;
}
