//! What can be looked at: instances, images, use, times, versions, the machine.

use anyhow::{Result, ensure};
use sampan_e2e::fixtures::{Compression, busybox, debian};
use sampan_e2e::harness::pod::text;
use sampan_e2e::harness::wait::eventually;
use sampan_e2e::service::Service;

pub(crate) fn instances_are_listed_in_every_form(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    service.sampan(["run", "-d", "--name", "listed", "--label", "kind=listed", &busybox, "sleep", "1000"]).ok()?;
    let json = service.sampan(["ps", "-l", "kind=listed", "-o", "json"]).finish()?.json()?;
    assert_eq!(json["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(text(&json, "/items/0/metadata/name"), "listed");
    ensure!(service.sampan(["ps", "-l", "kind=listed", "-o", "yaml"]).ok()?.contains("name: listed"));
    let wide = service.sampan(["ps", "-l", "kind=listed", "-o", "wide"]).ok()?;
    ensure!(wide.contains("ADDRESS") && wide.contains(&service.prefix4) && wide.contains("sleep 1000"), "{wide}");
    assert_eq!(service.sampan(["ps", "-q", "-l", "kind=other"]).ok()?, "");
    assert_eq!(service.pod("listed")?["spec"]["containers"][0]["name"], "main");
    ensure!(service.sampan(["inspect", "-o", "yaml", "listed"]).ok()?.contains("kind: Pod"));
    service.sampan(["inspect", "nobody"]).finish()?.fails_with(1, &["nobody"])?;
    service.remove(["listed"])
}

pub(crate) fn use_and_times_are_shown(service: &Service) -> Result<()> {
    service.background("busy", "head -c 20m /dev/zero > /written; while true; do :; done")?;
    let stats = eventually("its use is seen", || {
        let stats = service.sampan(["stats", "busy", "-o", "json"]).finish()?.json()?;
        let text = stats.to_string();
        Ok((text.contains("usageCoreNanoSeconds") && text.contains("\"busy\"")).then_some(stats))
    })?;
    ensure!(stats.to_string().contains("workingSetBytes"), "{stats}");
    let table = service.sampan(["stats", "busy"]).ok()?;
    ensure!(table.starts_with("NAME") && table.contains("MiB"), "{table}");
    let timeline = service.sampan(["timeline", "busy"]).ok()?;
    for phase in ["image", "rootfs", "start", "total"] {
        ensure!(timeline.contains(phase), "no {phase}: {timeline}");
    }
    // A sandbox that was kept ready has its network already.
    let is_made = timeline.contains("sandbox") && timeline.contains("network");
    ensure!(is_made || timeline.contains("claim"), "no sandbox: {timeline}");
    service.remove(["busy"])
}

pub(crate) fn images_come_and_go(service: &Service) -> Result<()> {
    let reference =
        service.image("coming:and-going", || Ok(busybox::builder(Compression::Gzip)?.env("MARK", "1").build()))?;
    service.sampan(["pull", &reference]).ok()?;
    let listed = service.sampan(["images"]).ok()?;
    ensure!(listed.contains(&reference), "{listed}");
    let json = service.sampan(["images", "-o", "json"]).finish()?.json()?;
    let images = json["images"].as_array().cloned().unwrap_or_default();
    let ours = images.iter().find(|image| image["references"].to_string().contains(&reference));
    let id = ours.map(|image| text(image, "/id")).unwrap_or_default();
    ensure!(id.starts_with("sha256:") && id.len() == 71, "{json}");
    service.sampan(["run", "-d", "--name", "user-of-it", &reference, "sleep", "1000"]).ok()?;
    service.sampan(["rmi", &reference]).finish()?.fails_with(1, &[&reference, "use"])?;
    service.remove(["user-of-it"])?;
    service.sampan(["rmi", &reference]).ok()?;
    ensure!(!service.sampan(["images"]).ok()?.contains(&reference), "it is still listed");
    service.sampan(["rmi", &reference]).finish()?.fails_with(1, &[&reference])?;
    // A pull shows its layers on a terminal, and one line elsewhere.
    let terminal = service.sampan(["pull", &reference]).on_terminal((100, 30))?;
    terminal.screen.wait_for("sha256:")?;
    assert_eq!(terminal.finish()?, 0);
    Ok(())
}

pub(crate) fn versions_and_the_machine_are_shown(service: &Service) -> Result<()> {
    let version = service.sampan(["version"]).ok()?;
    ensure!(version.contains("client") && version.contains("server"), "{version}");
    let check = service.sampan(["host", "check"]).ok()?;
    for line in ["kernel", "cgroups", "user namespaces", "erofs"] {
        ensure!(check.contains(line), "no {line}: {check}");
    }
    // Without a service: one line that says how to start one.
    let nobody = service.sampan(["ps"]).env("SAMPAN_SOCKET", service.work().join("no.sock")).finish()?;
    nobody.fails_with(1, &["no.sock", "sampan serve"])?;
    let nobody = service.sampan(["run", "x"]).env("SAMPAN_SOCKET", service.work().join("no.sock")).finish()?;
    nobody.fails_with(125, &["no.sock", "sampan serve"])
}

pub(crate) fn python_computes_with_numpy(service: &Service) -> Result<()> {
    let image = service.image("python:numpy", debian::python)?;
    let program = "import numpy as np\na = np.arange(9.0).reshape(3, 3) + np.eye(3)\n\
                   print(round(float(np.linalg.det(a) * np.linalg.inv(a).trace()), 6), (a @ a).sum())";
    assert_eq!(service.sampan(["run", "--rm", &image, "python3", "-c", program]).ok()?, "9.0 561.0");
    assert_eq!(service.sampan(["run", "--rm", "-i", &image, "python3", "-"]).input("print(6 * 7)").ok()?, "42");
    Ok(())
}
