//! Bad input: one line that names the thing, the reason and the way out, a non-zero exit, and nothing left behind.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use sampan_e2e::claims;
use sampan_e2e::fixtures::{Image, hostile, variants};
use sampan_e2e::leaks::entries;
use sampan_e2e::service::Service;

/// Runs `image` and insists on one line with `words`, and on nothing left.
fn refuses(service: &Service, image: &str, words: &[&str]) -> Result<()> {
    refuses_call(service, &["run", "--rm", image, "true"], 125, words)?;
    let (repository, _) = image.rsplit_once(['@', ':']).unwrap_or((image, ""));
    let listed = service.sampan(["images"]).ok()?;
    ensure!(!listed.contains(repository), "a refused image is listed: {listed}");
    Ok(())
}

fn refuses_call(service: &Service, call: &[&str], code: i32, words: &[&str]) -> Result<()> {
    let name = format!(
        "refused-{:x}",
        call.iter()
            .flat_map(|word| word.bytes())
            .fold(7_u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()))
    );
    let mut named: Vec<&str> = call.to_vec();
    if call.first() == Some(&"run") && !call.contains(&"--name") {
        named.splice(1..1, ["--name", name.as_str()]);
    }
    service.sampan(&named).finish()?.fails_with(code, words)?;
    let left = service.sampan(["ps", "-aq"]).ok()?;
    ensure!(!left.contains(&name), "an instance is left of `{}`", named.join(" "));
    Ok(())
}

fn refuses_image(service: &Service, name: &str, image: &Image, words: &[&str]) -> Result<()> {
    let reference = service.registry.push(image, name)?;
    refuses(service, &reference, &[&[reference.as_str()][..], words].concat())
}

pub(crate) fn unknown_hosts_and_images(service: &Service) -> Result<()> {
    refuses(service, "no-such-host.invalid/image:1", &["no-such-host.invalid"])?;
    refuses(service, &format!("127.0.0.1:{}/image:1", claims::port()?), &["127.0.0.1:", "refuses connections"])?;
    let unknown = service.registry.reference("nobody/knows:this");
    refuses(service, &unknown, &[&unknown, "not"])?;
    refuses(service, "Not A Reference", &["Not A Reference"])?;
    service.sampan(["pull", &unknown]).finish()?.fails_with(1, &[&unknown])
}

pub(crate) fn content_that_is_not_what_its_digest_says(service: &Service) -> Result<()> {
    let (image, digest, other) = hostile::wrong_digest()?;
    let reference = service.registry.push(&image, "bad-digest:1")?;
    service.registry.replace_blob(&digest, &other)?;
    refuses(service, &reference, &[&reference, &digest])?;
    let image = hostile::wrong_diff_id()?;
    refuses_image(service, "bad-diff-id:1", &image, &["unpacks to", "build the image again"])
}

pub(crate) fn damaged_layers(service: &Service) -> Result<()> {
    for (name, image) in [
        ("bad-truncated:1", hostile::truncated_gzip()?),
        ("bad-corrupt:1", hostile::corrupt_gzip()?),
        ("bad-tar:1", hostile::truncated_tar()?),
    ] {
        refuses_image(service, name, &image, &["layer"])?;
    }
    Ok(())
}

pub(crate) fn entries_that_lead_outside(service: &Service) -> Result<()> {
    let target = service.work().join("escape-target");
    fs::create_dir(&target)?;
    let path = target.join("absolute");
    refuses_image(service, "bad-parent:1", &hostile::parent_directory()?, &["../../escaped"])?;
    refuses_image(service, "bad-link:1", &hostile::dangling_hard_link()?, &["link"])?;
    // An absolute name and a name through a link are names below the image's own root, as in docker, or are refused;
    // nothing may arrive on the host.
    let absolute = hostile::absolute_path(&path.display().to_string())?;
    let through = hostile::escaping_symlink(&target.display().to_string())?;
    for (name, image) in [("bad-absolute:1", absolute), ("bad-symlink:1", through)] {
        let reference = service.registry.push(&image, name)?;
        let done = service.sampan(["run", "--rm", &reference, "true"]).finish()?;
        if done.code != 0 {
            done.fails_with(125, &[&reference])?;
        }
    }
    ensure!(entries(&target)?.is_empty(), "an image wrote to the host: {:?}", entries(&target)?);
    ensure!(!Path::new("/escaped").exists(), "an image wrote to the host's root");
    Ok(())
}

pub(crate) fn layers_that_are_far_larger_than_they_look(service: &Service) -> Result<()> {
    // One after the other: both promise the same content, and pulls of the same content are one.
    refuses_image(service, "bad-pax:1", &hostile::pax_bomb()?, &["header"])?;
    refuses_image(
        service,
        "bad-expanding:1",
        &hostile::expanding_layer(3 << 30)?,
        &["expands to more than 1073741824 bytes", "raise the limit"],
    )?;
    let incoming = service.data_dir().join("images/incoming");
    let stale =
        entries(&incoming)?.into_iter().filter(|path| fs::metadata(path).is_ok_and(|file| file.len() > 100 << 20));
    assert_eq!(stale.count(), 0, "what was unpacked of a refused layer stays");
    Ok(())
}

pub(crate) fn media_types_and_machines(service: &Service) -> Result<()> {
    refuses_image(service, "bad-type:1", &hostile::unknown_media_type()?, &["application/vnd.example.layer"])?;
    refuses_image(service, "bad-foreign:1", &hostile::foreign_layer()?, &["foreign"])?;
    refuses_image(service, "bad-machine:1", &variants::other_architecture()?, &["s390x"])
}

pub(crate) fn commands_that_cannot_be_run(service: &Service) -> Result<()> {
    let nothing = service.image("no-command:1", hostile::no_command)?;
    refuses_call(service, &["run", "--rm", &nothing], 125, &[&nothing, "command"])?;
    let busybox = service.busybox()?;
    refuses_call(service, &["run", "--rm", &busybox, "no-such-command"], 127, &["no-such-command"])?;
    refuses_call(service, &["run", "--rm", &busybox, "/etc/passwd"], 126, &["/etc/passwd"])?;
    refuses_call(service, &["run", "--rm", "--user", "stranger", &busybox, "true"], 128, &["stranger"])?;
    service.background("executing", "sleep 1000")?;
    let exec = |command: &str| service.sampan(["exec", "executing", command]).finish();
    let missing = exec("no-such-command")?.expect(127)?;
    ensure!(missing.complaint().lines().count() == 1 && missing.complaint().contains("no-such-command"));
    exec("/etc/passwd")?.expect(126)?;
    service.remove(["executing"])?;
    service.sampan(["exec", "executing", "true"]).finish()?.fails_with(125, &["executing"])
}

pub(crate) fn names_and_ports_that_are_taken(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    let port = claims::port()?.to_string();
    let publish = format!("{port}:80");
    service.sampan(["run", "-d", "--name", "holder", "-p", &publish, &busybox, "sleep", "1000"]).ok()?;
    refuses_call(service, &["run", "--rm", "--name", "holder", &busybox, "true"], 125, &["holder", "already"])?;
    refuses_call(service, &["run", "--rm", "-p", &publish, &busybox, "true"], 125, &[&port, "holder"])?;
    service.remove(["holder"])?;
    // A program of the host's own.
    let listener = std::net::TcpListener::bind("0.0.0.0:0")?;
    let port = listener.local_addr()?.port().to_string();
    refuses_call(service, &["run", "--rm", "-p", &format!("{port}:80"), &busybox, "true"], 125, &[&port])
}

pub(crate) fn values_that_make_no_sense(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    for (options, words) in [
        (["--memory", "lots"], ["lots", "512Mi"]),
        (["--cpu", "many"], ["many", "0.5"]),
        (["--disk", "-1"], ["-1", "--disk"]),
        (["-p", "80"], ["80", "8080:80"]),
        (["--name", "No Name"], ["No Name", "a-z"]),
        (["-w", "relative"], ["relative", "/"]),
        (["--pull", "sometimes"], ["sometimes", "always"]),
        (["--env-file", "not-there"], ["not-there", "No such file"]),
        (["--memory", "400Ti"], ["memory", "ask for less"]),
    ] {
        let call = ["run", "--rm", options[0], options[1], &busybox, "true"];
        refuses_call(service, &call, 125, &words)?;
    }
    Ok(())
}

pub(crate) fn manifests_that_are_no_yaml(service: &Service) -> Result<()> {
    let file = service.work().join("bad.yaml");
    let apply = |content: &str, words: &[&str]| {
        fs::write(&file, content)?;
        service.sampan(["apply", "-f", "bad.yaml"]).finish()?.fails_with(1, words)
    };
    apply("apiVersion: v1\nkind: Pod\nmetadata:\n  name: [unclosed\nspec: {}\n", &["bad.yaml", "line"])?;
    apply("apiVersion: v1\nkind: Pod\nmetadata: {name: bad-one}\nspec: {containers: 7}\n", &["containers"])?;
    apply("apiVersion: v1\nkind: Spaceship\nmetadata: {name: bad-one}\n", &["Spaceship"])?;
    apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: bad-one}\nspec: {containers: [{name: a, image: x, imagee: y}]}\n",
        &["imagee"],
    )?;
    service.sampan(["apply", "-f", "not-there.yaml"]).finish()?.fails_with(1, &["not-there.yaml"])?;
    ensure!(!service.sampan(["ps", "-aq"]).ok()?.contains("bad-one"));
    Ok(())
}

pub(crate) fn volumes_that_are_not_there(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    refuses_call(service, &["run", "--rm", "-v", "/not/there:/x", &busybox, "true"], 125, &["/not/there"])?;
    refuses_call(service, &["run", "--rm", "-v", "named:/x", &busybox, "true"], 125, &["named", "./named"])
}
