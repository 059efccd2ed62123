//! Settings as the environment gives them.

use cuda_emulator::settings::{Checks, Order, Settings, SettingsError};

fn with(variable: &str, value: &str) -> Result<Settings, SettingsError> {
    Settings::from_variables(|name| (name == variable).then(|| value.to_owned()))
}

#[test]
fn without_variables_all_is_checked() {
    let settings = Settings::from_variables(|_| None).unwrap();
    assert_eq!((settings.capability, settings.order, settings.report), (80, Order::Early, None));
    assert_eq!(settings.checks, Checks { alignment: true, initialised: true, races: true, counters: true });
    assert!(settings.threads >= 1);
}

#[test]
fn every_allowed_value_means_itself() {
    for (text, capability) in [("7.5", 75), ("8.0", 80), ("8.9", 89)] {
        assert_eq!(with("EMULATOR_COMPUTE_CAPABILITY", text).unwrap().capability, capability);
    }
    let orders = [("early", Order::Early), ("late", Order::Late), ("0", Order::Seed(0))];
    for (text, order) in orders.into_iter().chain([("18446744073709551615", Order::Seed(u64::MAX))]) {
        assert_eq!(with("EMULATOR_ORDER", text).unwrap().order, order);
    }
    for threads in [1, 1024] {
        assert_eq!(with("EMULATOR_THREADS", &threads.to_string()).unwrap().threads, threads);
    }
    let report = with("EMULATOR_REPORT", "a b/c.json").unwrap().report;
    assert_eq!(report.unwrap().to_str(), Some("a b/c.json"));
}

#[test]
fn checks_are_chosen_one_by_one() {
    let checks = |text| with("EMULATOR_CHECKS", text).unwrap().checks;
    let none = Checks { alignment: false, initialised: false, races: false, counters: false };
    assert_eq!(checks("none"), none);
    assert_eq!(checks("all"), Checks::ALL);
    assert_eq!(checks("alignment"), Checks { alignment: true, ..none });
    assert_eq!(checks("initialised"), Checks { initialised: true, ..none });
    assert_eq!(checks("races"), Checks { races: true, ..none });
    assert_eq!(checks("counters"), Checks { counters: true, ..none });
    assert_eq!(checks("races, alignment,races"), Checks { races: true, alignment: true, ..none });
}

#[test]
fn other_values_are_refused_by_name() {
    for (variable, values) in [
        ("EMULATOR_COMPUTE_CAPABILITY", &["8", "80", "9.0", "", " 8.0"][..]),
        ("EMULATOR_CHECKS", &["", "everything", "races,", "all,races", "Races"]),
        ("EMULATOR_ORDER", &["", "-1", "1.5", "18446744073709551616", "Early"]),
        ("EMULATOR_THREADS", &["", "0", "1025", "-1", "two"]),
        ("EMULATOR_REPORT", &[""]),
    ] {
        for value in values {
            let error = with(variable, value).unwrap_err();
            let told = error.to_string();
            assert!(told.starts_with(&format!("{variable}={value}: ")) && told.len() < 200, "{told}");
        }
    }
}
